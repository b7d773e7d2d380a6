// Draws the figures of the page in the colours of the theme, again when theme, width or a control changes.
(() => {
  "use strict";
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const narrow = matchMedia("(max-width: 760px)");
  // "@harm" is "@diverging" for amounts of which more is worse.
  const scales = { "@diverging": ["low", "mid", "high"], "@harm": ["high", "mid", "low"], "@amount": ["mid", "amount"] };
  const hidden = new Set(); // indices of the domains switched off by their chips
  const figures = JSON.parse(document.getElementById("figures").textContent);

  const setting = (id) => document.getElementById(id)?.value;
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();

  // "@d0" is a colour of the theme, "@d0/0.2" the same with that opacity.
  function colour(text) {
    const [name, opacity] = text.slice(1).split("/");
    return css(name) + (opacity ? Math.round(255 * opacity).toString(16).padStart(2, "0") : "");
  }

  // A copy of a figure in which "@name" stands for its colour; only under keys of colours, so that no text can match.
  function resolve(value, key) {
    if (Array.isArray(value)) return value.map((item) => resolve(item, key));
    if (value && typeof value === "object")
      return Object.fromEntries(Object.entries(value).map(([name, item]) => [name, resolve(item, name)]));
    if (typeof value !== "string" || value[0] !== "@" || !key.endsWith("color") && key !== "colorscale") return value;
    return value in scales ? scales[value].map((name, place) => [place / (scales[value].length - 1), css(name)]) : colour(value);
  }

  function merged(base, more) {
    if (!more || typeof more !== "object" || Array.isArray(more) || !base || typeof base !== "object") return more;
    return { ...base, ...Object.fromEntries(Object.entries(more).map(([name, item]) => [name, merged(base[name], item)])) };
  }

  function axis(own) {
    return { gridcolor: css("grid"), zeroline: false, linecolor: css("grid"), automargin: true,
      // A finger that drags over a plot on a phone wants to scroll the page.
      fixedrange: narrow.matches, ...own, title: { standoff: 8, ...own?.title } };
  }

  function layout(figure) {
    const own = resolve(figure.layout, "");
    const axes = ["xaxis", "yaxis", ...Object.keys(own).filter((name) => /^[xy]axis\d/.test(name))];
    return {
      height: figure.height, margin: { l: 8, r: 10, t: own.annotations ? 26 : 10, b: 8 }, dragmode: narrow.matches ? false : "zoom",
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", hovermode: "closest",
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: css("muted") },
      hoverlabel: { bgcolor: css("raised"), bordercolor: css("faint"), font: { color: css("ink") }, namelength: -1 },
      legend: { orientation: "h", x: 0, xanchor: "left", y: 1.02, yanchor: "bottom", font: { color: css("ink") } },
      ...own, ...Object.fromEntries(axes.map((name) => [name, axis(own[name])])),
    };
  }

  function data(figure) {
    return figure.data.map((trace, index) => {
      const shown = resolve(trace, "");
      if (figure.toggle && hidden.has(trace.meta)) shown.visible = false;
      if (figure.planes && index === 0) shown.z = figure.planes[setting("pair") ?? 0];
      if (figure.cells && index === 0) Object.assign(shown, moment(figure));
      if (trace.type === "heatmap") shown.colorbar = { ...shown.colorbar, tickfont: { color: css("muted") } };
      return shown;
    });
  }

  // The cells of the map by layer: means of the planes over the records around the moment that the slider selects.
  function moment(figure) {
    const planes = figures["module-steps"].planes, count = figure.steps.length;
    const wanted = Number(setting("window"));
    const width = Math.max(1, wanted < 1 ? Math.round(wanted * count) : wanted);
    const mean = (at, cell) => {
      const first = Math.max(0, Math.min(count - width, at - (width >> 1)));
      const known = planes[cell[0]][cell[1]].slice(first, first + width).filter((value) => value !== null);
      return known.length ? known.reduce((sum, value) => sum + value, 0) / known.length : null;
    };
    const at = Number(setting("moment")), first = Math.max(0, Math.min(count - width, at - (width >> 1)));
    const text = document.getElementById("moment-text"), last = figure.ends[Math.min(count, first + width) - 1];
    text.textContent = figure.steps[first] === last ? `step ${last}` : `steps ${figure.steps[first]} to ${last}`;
    // One scale for all moments, or a change over time could not be seen.
    const all = figure.cells.flat().filter(Boolean).flatMap((cell) => figure.steps.map((_, place) => Math.abs(mean(place, cell))));
    all.sort((a, b) => a - b);
    const limit = Math.max(0.02, all[Math.floor(0.98 * (all.length - 1))] || 0);
    return { z: figure.cells.map((row) => row.map((cell) => cell && mean(at, cell))), zmin: -limit, zmax: limit };
  }

  function draw(id) {
    const element = document.getElementById(id);
    if (!element) return;
    let figure = figures[id];
    if (figure.choices) figure = merged(figure, figure.options[figure.choices.map(setting).join(",")] ?? { data: [] });
    if (narrow.matches) figure = merged(figure, figure.narrow ?? {});
    element.style.height = figure.height + "px";
    Plotly.react(element, data(figure), layout(figure), { displayModeBar: false, responsive: true });
  }

  const drawAll = () => Object.keys(figures).forEach(draw);
  const drawIf = (test) => Object.keys(figures).filter((id) => test(figures[id], id)).forEach(draw);

  // Samples: two of each domain at first; all of a domain that was chosen.
  function arrange() {
    const list = document.getElementById("samples");
    if (!list) return;
    document.getElementById("sample-controls").hidden = false;
    const domain = setting("sample-domain"), order = setting("sample-order");
    const whole = document.getElementById("sample-more").getAttribute("aria-pressed") === "true";
    const items = [...list.children];
    items.forEach((item, place) => { item.dataset.place ??= place; });
    const gain = (item) => Number(item.dataset.gain ?? 0) * (order === "loss" ? 1 : -1);
    const place = (item) => Number(item.dataset.place);
    items.sort((a, b) => (order === "file" ? 0 : gain(a) - gain(b)) || place(a) - place(b));
    const seen = {};
    for (const item of items) {
      const own = item.dataset.domain;
      seen[own] = (seen[own] ?? 0) + 1;
      item.hidden = domain !== "" ? own !== domain : !whole && seen[own] > 2;
      list.append(item);
    }
    document.getElementById("sample-more").hidden = domain !== "" || items.length <= 2 * Object.keys(seen).length;
  }

  function press(button, pressed) { button.setAttribute("aria-pressed", String(pressed)); }

  function toggle(button) {
    const domain = Number(button.dataset.domain);
    if (!hidden.delete(domain)) hidden.add(domain);
    markChips();
    drawIf((figure) => figure.toggle);
  }

  function markChips() {
    for (const button of document.querySelectorAll("button[data-domain]")) press(button, !hidden.has(Number(button.dataset.domain)));
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button?.dataset.domain !== undefined) toggle(button);
    if (button?.id === "sample-more") {
      const whole = button.getAttribute("aria-pressed") !== "true";
      press(button, whole);
      button.textContent = whole ? "show fewer" : "show all";
      arrange();
    }
  });
  document.addEventListener("input", (event) => {
    const id = event.target.id;
    if (id === "pair") draw("module-steps");
    if (id === "moment" || id === "window") draw("module-time");
    if (id.startsWith("pareto-")) drawIf((figure) => figure.choices?.includes(id));
    if (id.startsWith("sample-")) arrange();
  });

  // A table that is wider than its place says so, and the keyboard can scroll it.
  function markWide() {
    for (const box of document.querySelectorAll(".scroll")) {
      const wide = box.scrollWidth > box.clientWidth + 1;
      box.classList.toggle("wide", wide);
      wide ? box.setAttribute("tabindex", "0") : box.removeAttribute("tabindex");
    }
  }

  dark.addEventListener("change", drawAll);
  narrow.addEventListener("change", drawAll);
  addEventListener("resize", markWide);
  markChips();
  arrange();
  markWide();
  drawAll();
})();

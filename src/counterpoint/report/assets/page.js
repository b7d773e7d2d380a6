// Draws the figures of the page, in the colours of the theme, and redraws them when theme or width changes.
(() => {
  "use strict";
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const narrow = matchMedia("(max-width: 760px)");
  // "@harm" is "@diverging" for amounts of which more is worse.
  const scales = { "@diverging": ["low", "mid", "high"], "@harm": ["high", "mid", "low"], "@amount": ["mid", "amount"] };
  const hidden = new Set(); // indices of the domains switched off by their chips
  let pair = 0; // the domain pair shown in the heat map over steps

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();

  // A copy of a figure in which "@name" stands for its colour; only under keys of colours, so that no text can match.
  function resolve(value, key) {
    if (Array.isArray(value)) return value.map((item) => resolve(item, key));
    if (value && typeof value === "object")
      return Object.fromEntries(Object.entries(value).map(([name, item]) => [name, resolve(item, name)]));
    if (typeof value !== "string" || value[0] !== "@" || !key.endsWith("color") && key !== "colorscale") return value;
    return value in scales ? scales[value].map((name, place) => [place / (scales[value].length - 1), colour(name)]) : colour(value.slice(1));
  }

  function axis(own) {
    return { gridcolor: colour("grid"), zeroline: false, linecolor: colour("grid"), automargin: true,
      // A finger that drags over a plot on a phone wants to scroll the page.
      fixedrange: narrow.matches, ...own, title: { standoff: 8, ...own?.title } };
  }

  function layout(figure) {
    const own = resolve(figure.layout, "");
    return {
      height: figure.height, margin: { l: 8, r: 10, t: own.annotations ? 26 : 10, b: 8 }, dragmode: narrow.matches ? false : "zoom",
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", hovermode: "closest",
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: colour("muted") },
      hoverlabel: { bgcolor: colour("raised"), bordercolor: colour("faint"), font: { color: colour("ink") }, namelength: -1 },
      legend: { orientation: "h", x: 0, xanchor: "left", y: 1.02, yanchor: "bottom", font: { color: colour("ink") } },
      ...own, xaxis: axis(own.xaxis), yaxis: axis(own.yaxis),
    };
  }

  function data(id, figure) {
    const byDomain = id === "history" || id.startsWith("curve-");
    return figure.data.map((trace, index) => {
      const shown = resolve(trace, "");
      if (byDomain && hidden.has(trace.meta)) shown.visible = false;
      if (figure.options && index === 0) shown.z = figure.options[pair];
      if (trace.type === "heatmap") shown.colorbar = { ...shown.colorbar, tickfont: { color: colour("muted") } };
      return shown;
    });
  }

  const draw = (id) => Plotly.react(id, data(id, figures[id]), layout(figures[id]), { displayModeBar: false, responsive: true });
  const drawAll = () => Object.keys(figures).forEach(draw);

  for (const button of document.querySelectorAll("button[data-domain]"))
    button.addEventListener("click", () => {
      const domain = Number(button.dataset.domain);
      if (!hidden.delete(domain)) hidden.add(domain);
      for (const same of document.querySelectorAll(`button[data-domain="${domain}"]`))
        same.setAttribute("aria-pressed", String(!hidden.has(domain)));
      Object.keys(figures).filter((id) => id === "history" || id.startsWith("curve-")).forEach(draw);
    });
  document.getElementById("pair")?.addEventListener("change", (event) => { pair = Number(event.target.value); draw("module-steps"); });
  dark.addEventListener("change", drawAll);
  narrow.addEventListener("change", drawAll);
  drawAll();
})();

// Only in a served page: asks the server every two seconds whether there is news, and brings it in without a reload.
(() => {
  "use strict";
  const PAUSE_MS = 2000;
  const note = document.getElementById("live");
  let version = note.dataset.version; // of the content that is shown

  function say(text) { note.textContent = text; note.hidden = false; }

  async function get(path) {
    const answer = await fetch(path, { cache: "no-store" });
    if (!answer.ok) throw new Error(String(answer.status));
    return answer.text();
  }

  async function look() {
    const { version: found, problem } = JSON.parse(await get("version"));
    if (found !== version) {
      const page = new DOMParser().parseFromString(await get("content"), "text/html");
      document.dispatchEvent(new CustomEvent("counterpoint:fresh", { detail: page }));
      version = page.getElementById("live").dataset.version;
    }
    say(problem ?? `live, as of ${new Date().toLocaleTimeString()}`);
  }

  async function loop() {
    if (!document.hidden)
      try { await look(); } catch { say("the server does not answer; this is what it said last"); }
    setTimeout(loop, PAUSE_MS);
  }
  loop();
})();

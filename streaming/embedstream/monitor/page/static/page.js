// The page works without this file. It adds a copy button to commands, says when the page is not
// connected, and shows the values under the pointer in the charts.
(() => {
  "use strict";
  // The server sends something each second; after so many ms without anything it is away.
  const SILENCE_MS = 8000;

  // At once, so that nothing is drawn that is for browsers without scripts.
  document.documentElement.classList.add("has-script");

  document.addEventListener("click", async (event) => {
    const button = event.target.closest("[data-copy]");
    if (!button) return;
    const code = button.parentElement.querySelector("code");
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch {
      // Without https only localhost may write to the clipboard.
      getSelection().selectAllChildren(code);
      button.textContent = "Selected";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });

  document.addEventListener("pointerover", (event) => {
    const title = event.target.closest?.(".slot")?.querySelector("title");
    const readout = document.querySelector("[data-readout]");
    if (title && readout) readout.textContent = title.textContent;
  });

  document.addEventListener("DOMContentLoaded", watchConnection);

  function watchConnection() {
    const live = document.getElementById("live");
    const notice = document.getElementById("connection");
    if (!live) return;
    let heard = Date.now();
    let connection = null;
    const hear = (event) => {
      heard = Date.now();
      connection = event.detail.connection ?? connection;
      notice.hidden = true;
    };
    live.addEventListener("htmx:sse:after:connection", hear);
    live.addEventListener("htmx:sse:after:message", hear);
    live.addEventListener("htmx:sse:error", () => { notice.hidden = false; });
    setInterval(() => {
      if (document.hidden || Date.now() - heard < SILENCE_MS) return;
      notice.hidden = false;
      // A connection that is open and silent: the network went away. htmx makes a new one.
      connection?.reader?.cancel();
    }, 1000);
  }
})();

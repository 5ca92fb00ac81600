// Streams answers into the page and votes by key. Everything works without it, by reloading.
"use strict";

const live = document.getElementById("live");
if (live) {
  const texts = [...live.querySelectorAll(".text")];
  const source = new EventSource(live.dataset.stream);
  source.onmessage = (event) => {
    JSON.parse(event.data).forEach((piece, side) => { texts[side].append(piece); });
  };
  source.addEventListener("end", () => { source.close(); location.reload(); });
  addEventListener("pagehide", () => source.close());
}

const votes = new Map([...document.querySelectorAll("[data-key]")].map((b) => [b.dataset.key, b]));
addEventListener("keydown", (event) => {
  const typing = event.target.closest("textarea, input, select");
  if (!typing && !event.ctrlKey && !event.metaKey && !event.altKey && votes.has(event.key)) votes.get(event.key).click();
});

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

// Proof of work: finds a number whose hash with the page's challenge begins with enough zero bits.
const asking = document.querySelector("form[data-bits]");
if (asking) {
  const bits = Number(asking.dataset.bits), text = new TextEncoder();
  const zeros = (bytes) => {
    let count = 0;
    for (const byte of bytes) { if (byte) return count + Math.clz32(byte) - 24; count += 8; }
    return count;
  };
  asking.addEventListener("submit", async (event) => {
    if (asking.elements.work.value) return;
    event.preventDefault();
    const button = asking.querySelector("button");
    button.disabled = true;
    for (let number = 0; ; number++) {
      const digest = await crypto.subtle.digest("SHA-256", text.encode(`${asking.elements.challenge.value}:${number}`));
      if (zeros(new Uint8Array(digest)) >= bits) { asking.elements.work.value = number; break; }
    }
    asking.submit();
  });
}

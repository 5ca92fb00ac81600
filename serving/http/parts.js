// What pages of servers have in common. Every text from the server goes through textContent.
"use strict";
const at = (id) => document.getElementById(id);
const number = (x, digits = 0) => x === null || x === undefined ? "–" : x.toLocaleString("en", { maximumFractionDigits: digits });
const seconds = (s) => s >= 1 ? number(s, 2) + " s" : number(1000 * s, s < 0.01 ? 1 : 0) + " ms";
const age = (s) => s < 90 ? `${s} s` : s < 5400 ? `${Math.round(s / 60)} min` : `${number(s / 3600, 1)} h`;

function make(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function trouble(text) {
  at("trouble").hidden = !text;
  at("trouble").textContent = text || "";
}

function times(shown) {
  [shown.ttft_s, shown.itl_s].forEach((quantiles, i) => {
    const cells = at("times").tBodies[0].rows[i].cells;
    ["p50", "p90", "p99"].forEach((name, k) => { cells[k + 1].textContent = quantiles ? seconds(quantiles[name]) : "–"; });
  });
}

function finished(shown) {
  const ended = Object.entries(shown.finished);
  at("finished").textContent = ended.length ? ended.map(([why, count]) => `${why} ${number(count)}`).join(", ") : "None yet.";
}

// State and model; whether there are figures to show.
function head(shown) {
  document.body.classList.remove("stale");
  at("state").textContent = shown.uptime_s === undefined ? shown.state : `${shown.state}, up ${age(shown.uptime_s)}`;
  at("model").textContent = shown.model || "";
  if (shown.state === "draining") trouble("The server is shutting down and takes no new requests.");
  else if (shown.state === "starting") trouble("");
  else if (shown.why) trouble(`Out of order: ${shown.why}`);
  else return true;
  if (shown.why) at("nobody").hidden = true;
  return false;
}

function listen(show) {
  const events = new EventSource("/dashboard/events");
  events.onmessage = (event) => show(JSON.parse(event.data));
  events.onerror = () => {
    document.body.classList.add("stale");
    at("state").textContent = "no connection; trying again";
    trouble("The server does not answer. Figures below are the last ones it sent.");
  };
}

// Shows the snapshots of /dashboard/events. Every text from the server goes through textContent.
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

function clients(shown) {
  const rows = shown.clients, most = Math.max(1, ...rows.map((c) => c.served));
  at("nobody").hidden = rows.length > 0;
  at("clients").hidden = rows.length === 0;
  at("clients").tBodies[0].replaceChildren(...rows.map((client) => {
    const row = make("tr"), name = make("td", "name", client.name), bar = make("td", "bar"), meter = make("meter");
    name.title = client.name;
    meter.max = most;
    meter.value = client.served;
    bar.append(meter, make("span", "", number(client.served)));
    row.append(name, bar, make("td", "", number(client.running)), make("td", "", number(client.waiting)));
    return row;
  }));
  at("more").hidden = !shown.more_clients;
  at("more").textContent = `and ${number(shown.more_clients)} more`;
  const gap = shown.gap === null ? "not measured (too many clients wait at once)" : number(shown.gap);
  const bound = shown.bound === null ? `the policy ${shown.policy} proves no bound for it` : `proven bound ${number(shown.bound)} (${shown.policy})`;
  at("fairness").textContent = `Largest difference of service while two clients both waited: ${gap}; ${bound}.`;
}

function pools(shown) {
  at("pools").replaceChildren(...shown.pools.map((pool) => {
    const row = make("div", "pool"), svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    svg.setAttribute("viewBox", `0 0 ${pool.pages} 1`);
    svg.setAttribute("preserveAspectRatio", "none");
    let from = 0;
    for (const kind of ["used", "cached"]) {
      const rect = document.createElementNS("http://www.w3.org/2000/svg", "rect");
      rect.setAttribute("class", kind);
      rect.setAttribute("x", from);
      rect.setAttribute("width", pool[kind]);
      rect.setAttribute("height", 1);
      from += pool[kind];
      svg.append(rect);
    }
    row.append(make("span", "", pool.kind), svg, make("span", "count", `${number(pool.used)} in use, ${number(pool.cached)} cached, of ${number(pool.pages)}`));
    return row;
  }));
}

function times(shown) {
  [shown.ttft_s, shown.itl_s].forEach((quantiles, i) => {
    const cells = at("times").tBodies[0].rows[i].cells;
    ["p50", "p90", "p99"].forEach((name, k) => { cells[k + 1].textContent = quantiles ? seconds(quantiles[name]) : "–"; });
  });
}

function show(shown) {
  document.body.classList.remove("stale");
  at("state").textContent = shown.uptime_s === undefined ? shown.state : `${shown.state}, up ${age(shown.uptime_s)}`;
  at("model").textContent = shown.model || "";
  if (shown.state === "draining") return trouble("The server is shutting down and takes no new requests.");
  if (shown.state === "starting") return trouble("");
  if (shown.why) {
    at("nobody").hidden = true;
    return trouble(`Out of order: ${shown.why}`);
  }
  const fell = shown.policy_failure ? `The policy failed and fcfs took over: ${shown.policy_failure}` : "";
  trouble(fell || (shown.resets ? `The engine has been restarted ${number(shown.resets)} times after a failed step.` : ""));
  at("running").textContent = number(shown.running);
  at("slots").textContent = number(shown.slots);
  at("waiting").textContent = number(shown.waiting);
  at("rate").textContent = number(shown.tok_per_s, shown.tok_per_s < 100 ? 1 : 0);
  at("hits").textContent = number(100 * shown.hit_rate) + " %";
  const ended = Object.entries(shown.finished);
  at("finished").textContent = ended.length ? ended.map(([why, count]) => `${why} ${number(count)}`).join(", ") : "None yet.";
  clients(shown);
  times(shown);
  pools(shown);
}

const events = new EventSource("/dashboard/events");
events.onmessage = (event) => show(JSON.parse(event.data));
events.onerror = () => {
  document.body.classList.add("stale");
  at("state").textContent = "no connection; trying again";
  trouble("The server does not answer. Figures below are the last ones it sent.");
};

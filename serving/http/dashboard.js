// Shows the snapshots of /dashboard/events, with what parts.js offers.
"use strict";
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

function show(shown) {
  if (!head(shown)) return;
  const fell = shown.policy_failure ? `The policy failed and fcfs took over: ${shown.policy_failure}` : "";
  trouble(fell || (shown.resets ? `The engine has been restarted ${number(shown.resets)} times after a failed step.` : ""));
  at("running").textContent = number(shown.running);
  at("slots").textContent = number(shown.slots);
  at("waiting").textContent = number(shown.waiting);
  at("rate").textContent = number(shown.tok_per_s, shown.tok_per_s < 100 ? 1 : 0);
  at("hits").textContent = number(100 * shown.hit_rate) + " %";
  finished(shown);
  clients(shown);
  times(shown);
  pools(shown);
}

listen(show);

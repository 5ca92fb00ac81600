// Shows the snapshots of a cluster, with what parts.js offers.
"use strict";
const SVG = "http://www.w3.org/2000/svg", COLOURS = 12;
const colours = new Map(); // a client keeps its colour while the page is open

function colour(name) {
  if (!colours.has(name)) colours.set(name, `c${colours.size % COLOURS}`);
  return colours.get(name);
}

function bar(lane) {
  const svg = document.createElementNS(SVG, "svg");
  const live = lane.clients.reduce((sum, c) => sum + c.running + c.waiting, 0);
  svg.setAttribute("viewBox", `0 0 ${Math.max(1, lane.max_live || 0, live)} 1`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", `${live} outputs of at most ${lane.max_live || 0}`);
  let from = 0;
  for (const kind of ["running", "waiting"]) for (const client of lane.clients) {
    if (!client[kind]) continue;
    const rect = document.createElementNS(SVG, "rect");
    rect.setAttribute("class", colour(client.name) + (kind === "waiting" ? " wait" : ""));
    rect.setAttribute("x", from);
    rect.setAttribute("width", client[kind]);
    rect.setAttribute("height", 1);
    from += client[kind];
    svg.append(rect);
  }
  return svg;
}

function who(lane) {
  const list = make("p", "who");
  for (const client of lane.clients) {
    const one = make("span"), kinds = ["running", "waiting"].filter((kind) => client[kind]);
    const counts = kinds.map((kind) => `${number(client[kind])} ${kind}`).join(", ");
    one.append(make("i", `dot ${colour(client.name)}`), `${client.name} ${counts}`);
    list.append(one);
  }
  if (lane.more_clients) list.append(make("span", "", `and ${number(lane.more_clients)} more`));
  if (!lane.clients.length) list.append(make("span", "", lane.state === "up" ? "idle" : ""));
  return list;
}

function laneOf(lane) {
  const made = make("section", `lane ${lane.state}`), title = make("h3");
  title.append(make("b", "", `worker ${lane.worker}: ${lane.state}`));
  if (lane.hit_rate !== null) title.append(make("span", "", `${number(100 * lane.hit_rate)} % cached`));
  if (lane.output_tok !== null) title.append(make("span", "", `${number(lane.output_tok)} tokens`));
  if (lane.capacity !== null && lane.capacity !== 1) title.append(make("span", "", `speed ${number(lane.capacity, 2)} of the mean`));
  if (lane.losses) title.append(make("span", "", `lost ${number(lane.losses)} ${lane.losses === 1 ? "time" : "times"}`));
  made.append(title, bar(lane));
  if (lane.state === "up" || lane.clients.length) made.append(who(lane));
  if (lane.why && lane.state !== "up") made.append(make("p", "why", lane.why));
  return made;
}

function clients(shown) {
  const rows = shown.clients, most = Math.max(1, ...rows.map((c) => c.served));
  at("nobody").hidden = rows.length > 0;
  at("clients").hidden = rows.length === 0;
  at("clients").tBodies[0].replaceChildren(...rows.map((client) => {
    const row = make("tr"), name = make("td", "name"), cell = make("td", "bar"), meter = make("meter");
    name.append(make("i", `dot ${colour(client.name)}`), client.name);
    name.title = client.name;
    meter.max = most;
    meter.value = client.served;
    cell.append(meter, make("span", "", number(client.served)));
    row.append(name, cell, make("td", "", number(client.running)), make("td", "", number(client.waiting)));
    return row;
  }));
  at("more").hidden = !shown.more_clients;
  at("more").textContent = `and ${number(shown.more_clients)} more`;
  const gap = shown.gap === null ? "not measured (too many clients wait at once)" : number(shown.gap);
  at("fairness").textContent = `Largest difference of service while two clients both waited: ${gap}.`;
}

function credits(shown) {
  const rows = shown.clients.filter((client) => client.credit), places = shown.lanes.map((lane) => String(lane.worker));
  at("credit").hidden = rows.length === 0;
  const head = make("tr");
  head.append(make("th", "", "client"), ...places.map((place) => make("th", "", `worker ${place}`)));
  at("credits").tHead.replaceChildren(head);
  at("credits").tBodies[0].replaceChildren(...rows.map((client) => {
    const row = make("tr"), name = make("td", "name", client.name);
    name.title = client.name;
    row.append(name, ...places.map((place) => {
      const credit = client.credit[place];
      return make("td", credit <= 0 ? "debt" : "", number(credit));
    }));
    return row;
  }));
}

function show(shown) {
  if (!head(shown)) return;
  const up = shown.lanes.filter((lane) => lane.state === "up").length;
  if (!shown.why) trouble(shown.lost ? `${number(shown.lost)} outputs failed after all tries.` : "");
  at("up").textContent = number(up);
  at("workers").textContent = number(shown.lanes.length + shown.more_lanes);
  at("running").textContent = number(shown.running);
  at("slots").textContent = number(shown.slots);
  at("waiting").textContent = number(shown.waiting);
  at("queued").textContent = number(shown.queued);
  at("rate").textContent = number(shown.tok_per_s, shown.tok_per_s < 100 ? 1 : 0);
  at("hits").textContent = number(100 * shown.hit_rate) + " %";
  const spread = shown.replicated === null ? "" : ` Prefixes left for want of credit or room: ${number(shown.replicated)}.`;
  at("routing").textContent = `Router ${shown.router}. Outputs sent again after a loss: ${number(shown.again)}.${spread}`;
  at("lanes").replaceChildren(...shown.lanes.map(laneOf));
  at("more-lanes").hidden = !shown.more_lanes;
  at("more-lanes").textContent = `and ${number(shown.more_lanes)} more`;
  clients(shown);
  credits(shown);
  times(shown);
  finished(shown);
}

listen(show);

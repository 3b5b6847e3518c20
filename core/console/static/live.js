// A client of the Centrifugo protocol in its JSON form, as small as it can be: connect, show, acknowledge.
// Applications use the centrifuge SDK of their language instead.
"use strict";
const live = document.getElementById("live");
const state = document.getElementById("connection");
const list = document.getElementById("messages");
const address = new URL("/connection/websocket", location.href);
address.protocol = address.protocol.replace("http", "ws");
let commands = 0;
let wait = 500; // ms until the next try

function say(text, tone) {
  state.textContent = text;
  state.className = "badge " + tone;
}

function connect() {
  const socket = new WebSocket(address);
  const acknowledging = new Map(); // command ids and the items they are for
  const send = (command) => {
    socket.send(JSON.stringify({ id: ++commands, ...command }));
    return commands;
  };
  socket.onopen = () => send({ connect: { token: live.dataset.token } });
  socket.onclose = () => {
    say("disconnected, trying again", "warm");
    setTimeout(again, wait);
    wait = Math.min(2 * wait, 15000);
  };
  socket.onmessage = (e) => {
    for (const line of e.data.split("\n")) {
      if (line === "{}") {
        socket.send("{}"); // a ping
        continue;
      }
      const reply = JSON.parse(line || "{}");
      if (reply.connect) {
        say("connected", "good");
        wait = 500;
      }
      const item = acknowledging.get(reply.id);
      if (item) mark(item, reply.error ? "not acknowledged: " + reply.error.message : "acknowledged", reply.error ? "bad" : "good");
      const data = reply.push?.pub?.data;
      if (data) acknowledging.set(send({ rpc: { method: "ack", data: { ids: [data.id] } } }), show(data));
    }
  };
}

// again connects with a fresh token: the old one may have run out.
async function again() {
  try {
    const answer = await fetch(location.href, { cache: "no-store", redirect: "manual" });
    if (answer.type === "opaqueredirect") return location.reload(); // logged out
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    live.dataset.token = fresh.getElementById("live")?.dataset.token ?? live.dataset.token;
    connect();
  } catch {
    setTimeout(again, wait); // Carillon is away
    wait = Math.min(2 * wait, 15000);
  }
}

function part(name, text, className) {
  const e = document.createElement(name);
  e.textContent = text;
  if (className) e.className = className;
  return e;
}

function mark(item, text, tone) {
  item.querySelector(".badge")?.remove();
  item.append(part("span", text, "badge " + tone));
}

// show puts a message into the list, as text whatever it holds.
function show(data) {
  document.getElementById("empty").hidden = true;
  const item = document.createElement("li");
  item.dataset.id = data.id;
  const time = part("time", new Date(data.created_at).toISOString().slice(11, 19));
  time.dateTime = data.created_at;
  item.append(time, part("strong", data.title || "(no title)"), part("span", data.body || "", "text"));
  if (data.url) item.append(part("span", data.url, "dim text"));
  if (data.data && Object.keys(data.data).length) item.append(part("code", JSON.stringify(data.data), "text"));
  list.prepend(item);
  return item;
}

connect();

// A client of the Centrifugo protocol in its JSON form, as small as it can be: connect, show, acknowledge.
// Applications use the centrifuge SDK of their language instead.
"use strict";
const state = document.getElementById("state");
const list = document.getElementById("messages");
const url = new URL("/connection/websocket", location.href);
url.protocol = url.protocol.replace("http", "ws");
let commands = 0;

function connect() {
  const socket = new WebSocket(url);
  const send = (command) => socket.send(JSON.stringify({ id: ++commands, ...command }));
  socket.onopen = () => send({ connect: { token: document.body.dataset.token } });
  socket.onclose = (e) => {
    state.textContent = "disconnected";
    if (e.code < 3500 || e.code >= 4000) setTimeout(connect, 1000); // 3500 and up: do not come back
  };
  socket.onmessage = (e) => {
    for (const line of e.data.split("\n")) {
      const reply = JSON.parse(line || "{}");
      if (line === "{}") socket.send("{}"); // a ping
      if (reply.error) state.textContent = "refused: " + reply.error.message;
      if (reply.connect) state.textContent = "connected";
      const data = reply.push?.pub?.data;
      if (data) {
        show(data);
        send({ rpc: { method: "ack", data: { ids: [data.id] } } });
      }
    }
  };
}

function show(data) {
  const item = document.createElement("li");
  const time = document.createElement("time");
  time.textContent = new Date(data.created_at).toLocaleTimeString();
  const title = document.createElement("strong");
  title.textContent = data.title || "";
  const body = document.createElement("span");
  body.textContent = data.body || "";
  item.dataset.id = data.id;
  item.append(time, title, body);
  list.prepend(item);
}

connect();

// A real centrifuge client, driven by a test: a command a line comes in on stdin, an event a line goes
// out on stdout. Arguments: the gateway's URL and the transport.
import readline from 'node:readline';
import { Centrifuge } from 'centrifuge';
import { EventSource } from 'eventsource';
import WebSocket from 'ws';

const [, , url, transport] = process.argv;
const emit = (event, fields = {}) => process.stdout.write(JSON.stringify({ event, ...fields }) + '\n');

const path = { websocket: 'websocket', http_stream: 'http_stream', sse: 'sse' }[transport];
const endpoint = (transport === 'websocket' ? url.replace(/^http/, 'ws') : url) + '/connection/' + path;

let giveToken; // answers the pending getToken
const client = new Centrifuge([{ transport, endpoint }], {
  websocket: WebSocket,
  fetch,
  eventsource: EventSource,
  readableStream: ReadableStream,
  emulationEndpoint: url + '/connection/emulation',
  minReconnectDelay: 10,
  maxReconnectDelay: 50,
  getToken: () => new Promise((resolve) => { giveToken = resolve; emit('getToken'); }),
});

client.on('connected', (c) => emit('connected', { transport: c.transport }));
client.on('connecting', (c) => emit('connecting', { code: c.code }));
client.on('disconnected', (c) => emit('disconnected', { code: c.code }));
client.on('subscribed', (c) => emit('subscribed', { channel: c.channel, recovered: c.recovered, recoverable: c.recoverable }));
client.on('publication', (c) => emit('publication', { title: c.data.title, id: c.data.id }));
client.on('error', (c) => emit('error', { code: c.error.code }));

const commands = {
  connect: () => client.connect(),
  disconnect: () => client.disconnect(),
  token: ({ token }) => giveToken(token),
  rpc: ({ method, data }) => client.rpc(method, data).then(
    (r) => emit('rpc', { data: r.data }),
    (e) => emit('rpc', { code: e.code }),
  ),
  subscribe: ({ channel }) => {
    const sub = client.newSubscription(channel);
    sub.on('unsubscribed', (c) => emit('unsubscribed', { code: c.code }));
    sub.on('subscribed', () => emit('eavesdropping'));
    sub.subscribe();
  },
};

const lines = readline.createInterface({ input: process.stdin });
lines.on('line', (line) => { const c = JSON.parse(line); commands[c.cmd](c); });
lines.on('close', () => process.exit(0));

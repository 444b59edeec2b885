// An agent in JavaScript, written from docs/protocol.md with the npm package redis alone: `node agent.js ID`.
//
// Its capability is `digest`: wait until the file {"path": …} exists, as in a folder where other programs drop files
// (they rename complete files into it), and return {"sha256": …, "bytes": …}. COORD_REDIS_URL is the URL of Redis.
//
// It answers each message with its payload; of the message {"ask": AGENT, "protocol": …} it first requests the answer from
// that agent. It accepts every link, and takes the agent in COORD_MASTER as its master.

import { createHash, randomUUID } from 'node:crypto';
import { access, readFile } from 'node:fs/promises';
import { setTimeout as sleep } from 'node:timers/promises';
import { createClient } from 'redis';

const agentId = process.argv[2];
const url = process.env.COORD_REDIS_URL ?? 'redis://127.0.0.1:6379';
const prefix = `{${process.env.COORD_NAMESPACE ?? 'coord'}}:`;
const intervalMs = 1000 * Number(process.env.COORD_HEARTBEAT_INTERVAL_S ?? 5);
const answerMs = 1000 * Number(process.env.COORD_ANSWER_TIMEOUT_S ?? 10);
const master = process.env.COORD_MASTER;
const CAPACITY = 4;
// Seconds that another agent has to reply to a request.
const REPLY_S = 10;
const BLOCK_MS = 1000;
// Milliseconds that running work gets to finish at shutdown, and that the last facts get to reach the registry.
const [GRACE_MS, LEAVE_MS] = [30_000, 10_000];
// Number of outcomes that are kept, in case a fail-over brings their assignments back.
const KEPT = 1000;

const incarnation = randomUUID(); // new for each process
const caller = incarnation; // so all answers there are for this process
const me = { agent_id: agentId, incarnation };
// Goes with each fact about this agent; without one, nothing does.
const token = process.env.COORD_AGENT_TOKEN ? ['token', process.env.COORD_AGENT_TOKEN] : [];
const lanes = ['critical', 'high', 'normal', 'low'].map((lane) => `${prefix}inbox:${agentId}:${lane}`);
const replies = `${prefix}replies:${caller}`;

const waiting = new Map(); // lease -> attempt: read, not claimed yet
const held = new Map(); // lease -> attempt: from before its claim until its report is appended
const outcomes = new Map(); // lease -> [type, fact]: latest outcomes
const answers = new Map(); // entry id in in:registry of an own fact -> '' or an error code
const asked = new Map(); // id of an own request -> the message that it is for
let isDraining = false;
let hasLeft = false; // it deregisters: a heartbeat or a registration after that would bring it back
let needsMaster = false; // it has registered, and has not set its master since
let aheadMs = 0; // the server's clock minus performance.now()

// One connection for blocking reads, one for everything else. They reconnect automatically, also if the server does not
// answer for too long; pending commands are rejected, and no command is queued to be sent later.
function connection() {
  const socket = {
    socketTimeout: BLOCK_MS + answerMs,
    reconnectStrategy: (tries) => Math.min(50 * 2 ** tries, 1000),
    ...(url.startsWith('unix://') && { path: decodeURI(url.slice(7)) }),
  };
  const client = createClient({
    ...(!socket.path && { url }), socket, RESP: 2, disableOfflineQueue: true, pingInterval: answerMs / 2,
  });
  client.on('error', () => {}); // the commands report it too
  return client;
}
const [reader, writer] = [connection(), connection()];

// A server that is no longer the primary keeps its connections. Reconnect: the address may belong to another server.
let reconnecting;
function reconnectIfDemoted({ message }) {
  if (!/^(READONLY|MOVED|CLUSTERDOWN|UNBLOCKED)/.test(message)) return undefined;
  reconnecting ??= (async () => {
    for (const client of [reader, writer]) if (client.isOpen) client.destroy();
    await Promise.all([reader.connect(), writer.connect()]);
  })().finally(() => { reconnecting = undefined; });
  return reconnecting;
}

// Append facts.

// True for an error of the server that a retry cannot fix.
function isPermanent(error) {
  const temporary = /^(OOM|LOADING|BUSY|MISCONF|READONLY|MOVED|ASK|CLUSTERDOWN|MASTERDOWN|NOREPLICAS|TRYAGAIN)/;
  return /^[A-Z]+ /.test(error.message) && !temporary.test(error.message);
}

// Appends a fact, with retries until Redis answers (a repeated fact changes nothing); returns its entry id.
async function append(stream, type, fact, withCaller = false) {
  const command = ['XADD', prefix + stream, '*', 'type', type, 'data', JSON.stringify(fact)];
  if (withCaller) command.push('caller', caller);
  if (stream !== 'in:reports') command.push(...token);
  for (;;) {
    if (hasLeft && type === 'agent.registered') return undefined;
    try {
      const entry = await writer.sendCommand(command);
      aheadMs = parseInt(entry) - performance.now();
      return entry;
    } catch (error) {
      if (isPermanent(error)) fail(`${stream}: ${error.message}`);
      await reconnectIfDemoted(error);
      await sleep(500);
    }
  }
}

// Registers; a repeated registration with the same incarnation is a refresh.
function register() {
  needsMaster = Boolean(master);
  return append('in:registry', 'agent.registered', {
    ...me, agent_type: 'worker', capabilities: ['digest'], tags: ['foreign'],
    capacity: CAPACITY, heartbeat_interval: intervalMs / 1000,
  }, true);
}

// Sends a heartbeat; one may get lost, so it is not repeated.
function sendHeartbeat() {
  if (hasLeft) return;
  const data = JSON.stringify({ ...me, leases: held.size });
  writer.sendCommand(['XADD', `${prefix}in:beats`, 'MAXLEN', '~', '100000', '*',
    'type', 'agent.heartbeat', 'data', data, 'caller', caller, ...token]).catch(() => {});
}

// Reports an outcome; the lease is held until Redis has the report.
async function report(lease, type, fact) {
  await append('in:reports', type, fact);
  outcomes.set(lease, [type, fact]);
  if (outcomes.size > KEPT) outcomes.delete(outcomes.keys().next().value);
  held.delete(lease);
}

// Read inbox and replies.

// Reads lanes and replies, from the beginning after each connect.
async function read() {
  let cursors;
  for (;;) {
    try {
      if (!cursors) {
        await register();
        cursors = [...lanes, replies].map(() => '0');
      }
      const streams = await reader.sendCommand(['XREAD', 'COUNT', '64', 'BLOCK', String(BLOCK_MS),
        'STREAMS', ...lanes, replies, ...cursors]);
      for (const [stream, entries] of streams ?? []) { // in the order of the request
        const lane = lanes.indexOf(stream);
        for (const [entry, flat] of entries) {
          cursors[lane < 0 ? lanes.length : lane] = entry;
          const fields = {};
          for (let i = 0; i < flat.length; i += 2) fields[flat[i]] = flat[i + 1];
          if (lane < 0) onAnswer(fields);
          else onEntry(lane, entry, fields);
        }
      }
      claim();
    } catch (error) {
      console.error(`${agentId}: Redis is unavailable: ${error.message}`);
      cursors = undefined;
      await reconnectIfDemoted(error);
      await sleep(200);
    }
  }
}

// Handles an answer to facts of this process.
function onAnswer({ stream, fact, code = '', message }) {
  if (code === 'unknown_agent') register();
  else if (code && code !== 'agent_not_found') fail(`${code}: ${message}`); // agent_not_found: it has left already
  if (stream !== 'in:registry') return; // an entry id is unique in its stream only
  if (!code && needsMaster) { // the registry knows it now
    needsMaster = false;
    append('in:links', 'master.set', { agent_id: agentId, master_id: master });
  }
  for (const entry of fact.split(' ')) answers.set(entry, code);
  while (answers.size > KEPT) answers.delete(answers.keys().next().value);
}

// Handles an entry of a lane.
function onEntry(lane, entry, fields) {
  const { id: message, order, lease } = fields;
  if (lease && !order) return offer({ lane, entry, fields, abort: new AbortController() });
  if (order === 'stop_task') {
    if (waiting.has(lease)) giveBack(lease, fields.reason);
    else held.get(lease)?.abort.abort(fields.reason || 'stopped');
  } else if (order === 'list_leases') {
    const leases = Object.fromEntries([...held].map(([key, attempt]) => [key, attempt.fields.task_id]));
    append('in:registry', 'agent.leases_listed', { ...me, ask: fields.ask, leases });
  } else if (order === 'link_changed' && fields.change === 'requested') {
    append('in:links', 'link.accepted', { agent_id: agentId, peer_id: fields.agent_id });
  } else if (message) {
    if (performance.now() + aheadMs >= Number(fields.expires_at)) return undefined; // the router removes it
    return onMessage(fields).then(() => forget(lane, entry)); // a message is deleted after it was handled
  }
  return forget(lane, entry);
}

// Deletes an entry; if that fails, it is read again, which changes nothing.
function forget(lane, entry) {
  return writer.sendCommand(['XDEL', lanes[lane], entry]).catch(() => {});
}

// Queues an assignment, unless it is known already or belongs to another process.
function offer(attempt) {
  const { lease, incarnation: named } = attempt.fields;
  if ((named && named !== incarnation) || waiting.has(lease) || held.has(lease)) return;
  if (outcomes.has(lease)) {
    report(lease, ...outcomes.get(lease));
    return;
  }
  waiting.set(lease, attempt);
  if (isDraining) giveBack(lease, 'the agent is draining');
}

// Answers a message with its own payload (a ping also with the id), or with what another agent replies to a request.
async function onMessage(fields) {
  const { id, reply_to, protocol, message_type, data } = fields;
  const payload = JSON.parse(data);
  if (asked.has(reply_to)) {
    await reply(asked.get(reply_to), payload, fields.failed);
    asked.delete(reply_to);
  } else if (reply_to || protocol === 'broadcast') {
    return; // answers and broadcasts are not answered
  } else if (payload?.ask) {
    const message_id = `${id.slice(0, 122)}.ask`; // the same if handled twice
    asked.set(message_id, fields);
    await append('in:messages:normal', 'message.sent', {
      message_id, sender_id: agentId, receiver_id: payload.ask, protocol: payload.protocol, reply_by: REPLY_S,
      caused_by: id, traceparent: fields.traceparent, payload: { from: agentId },
    });
  } else {
    await reply(fields, message_type === 'heartbeat' ? { ...payload, agent_id: agentId } : payload);
  }
}

// Sends the reply to a message.
function reply({ id, sender_id, traceparent }, payload, failed) {
  const message_id = `${id.slice(0, 122)}.reply`; // the same if handled twice
  return append('in:messages:normal', 'message.sent', {
    message_id, sender_id: agentId, receiver_id: sender_id, reply_to: id, traceparent, payload, failed: failed === '1',
  });
}

// Run tasks.

// Starts waiting attempts, highest lane first, up to the capacity.
function claim() {
  const byLane = [...waiting].sort(([, a], [, b]) => a.lane - b.lane);
  for (const [lease, attempt] of byLane) {
    if (held.size >= CAPACITY || isDraining) return;
    waiting.delete(lease);
    held.set(lease, attempt);
    run(lease, attempt);
  }
}

// Returns an unclaimed task; the report also deletes the entry from the lane.
function giveBack(lease, reason = '') {
  const attempt = waiting.get(lease);
  waiting.delete(lease);
  held.set(lease, attempt);
  return report(lease, 'task.released', { task_id: attempt.fields.task_id, lease, reason });
}

// Claims a task by deleting its entry, runs it, and reports the outcome.
async function run(lease, { lane, entry, fields, abort: { signal } }) {
  const fact = { task_id: fields.task_id, lease };
  let type = 'task.released';
  // If the command is rejected, the entry may or may not have been deleted.
  const isClaimed = await writer.sendCommand(['XDEL', lanes[lane], entry]).then((count) => count === 1, () => false);
  if (!isClaimed || signal.aborted || isDraining) {
    fact.reason = signal.reason ?? (isClaimed ? 'the agent is draining' : 'claim in doubt');
  } else {
    const startTime = performance.now();
    const ago = () => Math.trunc(performance.now() - startTime);
    const started = setTimeout(() => append('in:reports', 'task.started', { ...fact, started_ms_ago: ago() }), 100);
    try {
      const result = await digest(JSON.parse(fields.data), signal);
      type = 'task.completed';
      Object.assign(fact, { result, started_ms_ago: ago() });
    } catch (error) {
      if (signal.aborted) {
        fact.reason = signal.reason;
      } else {
        type = 'task.failed';
        const message = error.message.slice(0, 2000);
        Object.assign(fact, { code: 'unreadable', message, retryable: false, started_ms_ago: ago() });
      }
    }
    clearTimeout(started);
  }
  await report(lease, type, fact);
  claim();
}

// The work: waits for a file and computes its digest.
async function digest({ payload: { path } }, signal) {
  if (typeof path !== 'string') throw new Error('payload: path is missing');
  while (!(await access(path).then(() => true, () => false))) await sleep(50, undefined, { signal });
  const content = await readFile(path, { signal });
  return { sha256: createHash('sha256').update(content).digest('hex'), bytes: content.length };
}

// Shut down.

// Exits at once; the coordinator reassigns the tasks that it holds.
function fail(reason) {
  console.error(`${agentId}: ${reason}`);
  process.exit(1);
}

async function waitUntil(condition, limitMs) {
  for (const end = performance.now() + limitMs; !condition() && performance.now() < end;) await sleep(20);
}

// Accepts nothing new, finishes or returns all tasks, then deregisters.
async function drain() {
  if (isDraining) return;
  isDraining = true;
  setTimeout(() => fail('Redis did not accept the deregistration'), GRACE_MS + 4 * LEAVE_MS);
  for (const lease of [...waiting.keys()]) giveBack(lease, 'the agent is draining');
  const status = await append('in:registry', 'agent.status_changed', { ...me, status: 'draining' }, true);
  await waitUntil(() => answers.has(status), LEAVE_MS); // earlier assignments have been read by now
  await waitUntil(() => held.size === 0, GRACE_MS);
  for (const { abort } of held.values()) abort.abort('the agent is shutting down');
  await waitUntil(() => held.size === 0, LEAVE_MS);
  hasLeft = true;
  const deregistered = await append('in:registry', 'agent.deregistered', me, true);
  await waitUntil(() => answers.has(deregistered), LEAVE_MS);
  process.exit(0);
}

process.on('SIGTERM', drain);
process.on('SIGINT', drain);
await Promise.all([reader.connect(), writer.connect()]);
setInterval(sendHeartbeat, intervalMs);
read();

// An agent of coord in JavaScript, with nothing but the npm package redis and docs/protocol.md: `node agent.js ID`.
//
// It can `digest`: wait until the file {"path": …} is there, as in a folder where others drop files (rename them into
// it when they are whole), and answer {"sha256": …, "bytes": …}. COORD_REDIS_URL says where Redis is.

import { createHash, randomUUID } from 'node:crypto';
import { access, readFile } from 'node:fs/promises';
import { setTimeout as sleep } from 'node:timers/promises';
import { createClient } from 'redis';

const agentId = process.argv[2];
const url = process.env.COORD_REDIS_URL ?? 'redis://127.0.0.1:6379';
const prefix = `{${process.env.COORD_NAMESPACE ?? 'coord'}}:`;
const intervalMs = 1000 * Number(process.env.COORD_HEARTBEAT_INTERVAL_S ?? 5);
const answerMs = 1000 * Number(process.env.COORD_ANSWER_TIMEOUT_S ?? 10);
const CAPACITY = 4;
const BLOCK_MS = 1000;
// What running work has to end once the agent is told to; and what the last words have to reach the registry.
const [GRACE_MS, FAREWELL_MS] = [30_000, 10_000];
// Outcomes that are remembered, in case a fail-over brings their assignments back.
const REMEMBERED = 1000;

const incarnation = randomUUID(); // drawn once for each process
const caller = incarnation; // so whatever is answered there is for this process
const me = { agent_id: agentId, incarnation };
const lanes = ['critical', 'high', 'normal', 'low'].map((lane) => `${prefix}inbox:${agentId}:${lane}`);
const replies = `${prefix}replies:${caller}`;

const waiting = new Map(); // lease -> attempt: read, and not claimed yet
const held = new Map(); // lease -> attempt: from before the claim is sent until its report is answered
const told = new Map(); // lease -> [type, fact]: the outcomes of late
const answers = new Map(); // entry id in in:registry of a fact of ours -> '' or an error's code
let isDraining = false;
let aheadMs = 0; // of the server's clock before performance.now()

// One connection that blocks in reads, one for everything else. They come back by themselves, also from a server that
// said nothing for too long; what was under way is rejected, and nothing is kept to be sent later behind our back.
function connection() {
  const socket = {
    socketTimeout: BLOCK_MS + answerMs,
    reconnectStrategy: (tries) => Math.min(50 * 2 ** tries, 1000),
    ...(url.startsWith('unix://') && { path: decodeURI(url.slice(7)) }),
  };
  const client = createClient({
    ...(!socket.path && { url }), socket, RESP: 2, disableOfflineQueue: true, pingInterval: answerMs / 2,
  });
  client.on('error', () => {}); // the commands say it too
  return client;
}
const [reader, writer] = [connection(), connection()];

// A server that is no primary any more keeps its connections: they are made anew, for the address may lead elsewhere.
let renewing;
function leaveDemoted({ message }) {
  if (!/^(READONLY|MOVED|CLUSTERDOWN|UNBLOCKED)/.test(message)) return undefined;
  renewing ??= (async () => {
    for (const client of [reader, writer]) if (client.isOpen) client.destroy();
    await Promise.all([reader.connect(), writer.connect()]);
  })().finally(() => { renewing = undefined; });
  return renewing;
}

// What it says.

// An answer of the server that another try will not mend.
function isFinal(error) {
  const forNow = /^(OOM|LOADING|BUSY|MISCONF|READONLY|MOVED|ASK|CLUSTERDOWN|MASTERDOWN|NOREPLICAS|TRYAGAIN)/;
  return /^[A-Z]+ /.test(error.message) && !forNow.test(error.message);
}

// Appends a fact, again and again until Redis has answered: twice does no harm. Its entry id.
async function tell(stream, type, fact, withCaller = false) {
  const command = ['XADD', prefix + stream, '*', 'type', type, 'data', JSON.stringify(fact)];
  if (withCaller) command.push('caller', caller);
  for (;;) {
    try {
      const entry = await writer.sendCommand(command);
      aheadMs = parseInt(entry) - performance.now();
      return entry;
    } catch (error) {
      if (isFinal(error)) giveUp(`${stream}: ${error.message}`);
      await leaveDemoted(error);
      await sleep(500);
    }
  }
}

// Says what it is; the same incarnation again is a refresh.
function register() {
  return tell('in:registry', 'agent.registered', {
    ...me, agent_type: 'worker', capabilities: ['digest'], tags: ['foreign'],
    capacity: CAPACITY, heartbeat_interval: intervalMs / 1000,
  }, true);
}

// It lives; a beat may get lost, so it is not repeated.
function beat() {
  const data = JSON.stringify({ ...me, leases: held.size });
  writer.sendCommand(['XADD', `${prefix}in:beats`, 'MAXLEN', '~', '100000', '*',
    'type', 'agent.heartbeat', 'data', data, 'caller', caller]).catch(() => {});
}

// Tells an outcome; the lease is held until Redis has it.
async function report(lease, type, fact) {
  await tell('in:reports', type, fact);
  told.set(lease, [type, fact]);
  if (told.size > REMEMBERED) told.delete(told.keys().next().value);
  held.delete(lease);
}

// What it is told.

// Reads the lanes and the replies, from the beginning after each connect.
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
      for (const [stream, entries] of streams ?? []) { // in the order in which they were asked for
        const lane = lanes.indexOf(stream);
        for (const [entry, flat] of entries) {
          cursors[lane < 0 ? lanes.length : lane] = entry;
          const fields = {};
          for (let i = 0; i < flat.length; i += 2) fields[flat[i]] = flat[i + 1];
          if (lane < 0) hear(fields);
          else take(lane, entry, fields);
        }
      }
      claim();
    } catch (error) {
      console.error(`${agentId}: Redis is away: ${error.message}`);
      cursors = undefined;
      await leaveDemoted(error);
      await sleep(200);
    }
  }
}

// An answer to facts of this process.
function hear({ stream, fact, code = '', message }) {
  if (code === 'unknown_agent') register();
  else if (code && code !== 'agent_not_found') giveUp(`${code}: ${message}`); // that one: it has left already
  if (stream !== 'in:registry') return; // an entry id is unique in its stream only, and those are waited for
  for (const entry of fact.split(' ')) answers.set(entry, code);
  while (answers.size > REMEMBERED) answers.delete(answers.keys().next().value);
}

// An entry of a lane.
function take(lane, entry, fields) {
  const { message_type: type, order, lease } = fields;
  if (type === 'task_assignment') return offer({ lane, entry, fields, abort: new AbortController() });
  if (type === 'coordination' && order === 'stop_task') {
    if (waiting.has(lease)) giveBack(lease, fields.reason);
    else held.get(lease)?.abort.abort(fields.reason || 'stopped');
  } else if (type === 'coordination' && order === 'list_leases') {
    const leases = Object.fromEntries([...held].map(([key, one]) => [key, one.fields.task_id]));
    tell('in:registry', 'agent.leases_listed', { ...me, ask: fields.ask, leases });
  } else if (type === 'direct') {
    return answer(fields).then(() => forget(lane, entry)); // a message is deleted when it was handled
  }
  return forget(lane, entry);
}

// Deletes an entry; should that get lost, it is read again, which does no harm.
function forget(lane, entry) {
  return writer.sendCommand(['XDEL', lanes[lane], entry]).catch(() => {});
}

// Remembers an assignment, unless it is known already or another process's.
function offer(one) {
  const { lease, incarnation: named } = one.fields;
  if ((named && named !== incarnation) || waiting.has(lease) || held.has(lease)) return;
  if (told.has(lease)) {
    report(lease, ...told.get(lease));
    return;
  }
  waiting.set(lease, one);
  if (isDraining) giveBack(lease, 'the agent is draining');
}

// A message: sends its payload back, unless that is what it is, or it is too late.
async function answer({ id, sender_id, reply_to, expires_at, data }) {
  if (reply_to || performance.now() + aheadMs >= Number(expires_at)) return;
  const message_id = createHash('sha256').update(`answer to ${id}`).digest('hex'); // handled twice, it is sent once
  await tell('in:messages:normal', 'message.sent', {
    message_id, sender_id: agentId, receiver_id: sender_id, reply_to: id, payload: JSON.parse(data),
  });
}

// What it does.

// Begins what is remembered, highest lane first, as far as there is room.
function claim() {
  const byLane = [...waiting].sort(([, a], [, b]) => a.lane - b.lane);
  for (const [lease, one] of byLane) {
    if (held.size >= CAPACITY || isDraining) return;
    waiting.delete(lease);
    held.set(lease, one);
    attempt(lease, one);
  }
}

// Gives back what was not claimed; the report takes the entry out of the lane too.
function giveBack(lease, reason = '') {
  const one = waiting.get(lease);
  waiting.delete(lease);
  held.set(lease, one);
  return report(lease, 'task.released', { task_id: one.fields.task_id, lease, reason });
}

// Claims a task by deleting its entry, does it, and tells what became of it.
async function attempt(lease, { lane, entry, fields, abort: { signal } }) {
  const fact = { task_id: fields.task_id, lease };
  let type = 'task.released';
  // Rejected, it was deleted or not: nobody can tell.
  const isOurs = await writer.sendCommand(['XDEL', lanes[lane], entry]).then((count) => count === 1, () => false);
  if (!isOurs || signal.aborted || isDraining) {
    fact.reason = signal.reason ?? (isOurs ? 'the agent is draining' : 'claim in doubt');
  } else {
    const begun = performance.now();
    const ago = () => Math.trunc(performance.now() - begun);
    const started = setTimeout(() => tell('in:reports', 'task.started', { ...fact, started_ms_ago: ago() }), 100);
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

// The work: waits for a file, and takes its fingerprint.
async function digest({ payload: { path } }, signal) {
  if (typeof path !== 'string') throw new Error('payload: path is missing');
  while (!(await access(path).then(() => true, () => false))) await sleep(50, undefined, { signal });
  const content = await readFile(path, { signal });
  return { sha256: createHash('sha256').update(content).digest('hex'), bytes: content.length };
}

// Its end.

// Ends at once; what it holds is taken back by the coordinator.
function giveUp(why) {
  console.error(`${agentId}: ${why}`);
  process.exit(1);
}

async function until(isSo, limitMs) {
  for (const end = performance.now() + limitMs; !isSo() && performance.now() < end;) await sleep(20);
}

// Nothing new; finishes or gives back what there is; leaves.
async function drain() {
  if (isDraining) return;
  isDraining = true;
  setTimeout(() => giveUp('Redis did not take the farewell'), GRACE_MS + 4 * FAREWELL_MS);
  for (const lease of [...waiting.keys()]) giveBack(lease, 'the agent is draining');
  const status = await tell('in:registry', 'agent.status_changed', { ...me, status: 'draining' }, true);
  await until(() => answers.has(status), FAREWELL_MS); // what was assigned until then has been read by now
  await until(() => held.size === 0, GRACE_MS);
  for (const { abort } of held.values()) abort.abort('the agent is shutting down');
  await until(() => held.size === 0, FAREWELL_MS);
  const farewell = await tell('in:registry', 'agent.deregistered', me, true);
  await until(() => answers.has(farewell), FAREWELL_MS);
  process.exit(0);
}

process.on('SIGTERM', drain);
process.on('SIGINT', drain);
await Promise.all([reader.connect(), writer.connect()]);
setInterval(beat, intervalMs);
read();

-- What every script has: the namespace, the time, counters, answers, and entries handled one by one.
-- keys: in:reports stream r | counters hash rw | replies:{caller} stream w | size:{stream} string rw
-- keys: log:progress stream w
-- KEYS[1]  the namespace prefix, such as "{coord}:"; every key below is built from it, so all share its slot.
--   What a file itself names of them is in its `keys` lines: names and types as in coord/keys.py, r: it reads, w: it
--   writes (or deletes); in:* stands for streams that are named in ARGV. What it has done by a part that it includes is
--   in the header of that part.
-- ARGV[1]  now, ms since 1970; empty: the server's TIME
-- ARGV[2]  of each log, spaces between: entries kept (MAXLEN ~), trimmed once a batch; of log:tasks: events, looked
--   after once in 256 | bytes kept | bytes kept of log:progress
-- ARGV[3]  of each replies stream: entries kept (MAXLEN ~) | bytes kept | bytes of an outcome's data that a reply carries
-- ARGV[4]  ms that a replies stream lives after its last entry
local P = KEYS[1]
local LOG_MAX, LOG_BYTES, PROGRESS_LOG_BYTES = string.match(ARGV[2], '^(%d+) (%d+) (%d+)$')
local REPLIES_MAX, REPLIES_BYTES, REPLY_DATA_BYTES = string.match(ARGV[3], '^(%d+) (%d+) (%d+)$')
local REPLIES_TTL = ARGV[4]
REPLY_DATA_BYTES = tonumber(REPLY_DATA_BYTES)
local call = redis.call

-- A whole number as a string, never in the exponent form.
local function int(number)
  return string.format('%d', math.floor(number + 0.5))
end

local now = tonumber(ARGV[1])
if not now then
  local time = call('TIME')
  now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end
local NOW = int(now)

-- The ms and the sequence of an entry id.
local function entry_ms(id)
  local ms, seq = string.match(id, '^(%d+)%-(%d+)$')
  return tonumber(ms), tonumber(seq)
end

-- Returns true while an entry is in its stream. An entry has an effect only then: a worker that stood still between its
-- read and its script may name entries that a sibling has handled since. The word for such an entry is GONE.
-- One entry is looked up. From the second one of a stream on, what the server knows of the stream saves that: an entry that
-- is younger than every deleted one, and not older than the first, is there.
local last_stream, last_entry, last_is_present
local streams_asked, bounds = {}, {}

local function is_there(stream, entry)
  return call('XRANGE', P .. stream, entry, entry)[1] ~= nil
end

-- Returns the id from which on nothing is missing in a stream; false when the server does not say.
local function bound_of(stream)
  local info, found = call('XINFO', 'STREAM', P .. stream), {}
  for i = 1, #info, 2 do
    found[info[i]] = info[i + 1]
  end
  local deleted, first = found['max-deleted-entry-id'], found['recorded-first-entry-id']
  if not deleted or not first then
    return false
  end
  local ms, seq = entry_ms(deleted)
  local first_ms, first_seq = entry_ms(first)
  seq = seq + 1
  if first_ms > ms or (first_ms == ms and first_seq > seq) then
    ms, seq = first_ms, first_seq
  end
  return { ms = ms, seq = seq, digits = string.format('%013d', ms) }
end

-- Returns true when an entry is not older than a bound. Ids of 13 digits before the dash, the usual ones, compare as text.
local byte, substring = string.byte, string.sub
local function is_beyond(entry, bound)
  if byte(entry, 14) == 45 and substring(entry, 1, 13) > bound.digits then
    return true
  end
  local ms, seq = entry_ms(entry)
  return ms > bound.ms or (ms == bound.ms and seq >= bound.seq)
end

local function is_present(stream, entry)
  if entry == last_entry and stream == last_stream then -- the parts of one entry follow one another
    return last_is_present
  end
  if bounds[stream] == nil and streams_asked[stream] then
    bounds[stream] = bound_of(stream)
  end
  local bound = bounds[stream]
  last_stream, last_entry, streams_asked[stream] = stream, entry, true
  last_is_present = bound and is_beyond(entry, bound) or is_there(stream, entry)
  return last_is_present
end

-- The time of the oldest entry in in:reports, in ms; false without one. What it reports may be finished work.
local oldest_report
local function oldest_report_ms()
  if oldest_report == nil then
    local first = call('XRANGE', P .. 'in:reports', '-', '+', 'COUNT', 1)[1]
    oldest_report = first and entry_ms(first[1]) or false
  end
  return oldest_report
end

-- Returns true while in:reports holds an entry that may be older than this one, and so is to be read first. Ids of two
-- streams within one ms cannot be ordered.
local function reports_wait_before(entry)
  local oldest = oldest_report_ms()
  return oldest and oldest <= entry_ms(entry)
end

-- Counters are gathered and written once at the end of the batch: that they can be is proved before it begins.
call('HLEN', P .. 'counters')
local bumps = {}
local function bump(name, by)
  bumps[name] = (bumps[name] or 0) + by
end

-- A capped stream (a log, replies, dead:in) never holds more bytes than its cap: field names and values are counted. It
-- is cut into sections of a quarter of the cap. The key size:{stream} holds the bytes of the newest section, then the ids
-- at which the newest sections begin, three at most. What is older than the oldest of them is trimmed when a section
-- begins. The key is read and written once for each stream and batch. What was appended while there was no such key is
-- not counted, and is trimmed with the section that follows it.
local capped = {}
local function load_size(name, most)
  local stored = redis.pcall('GET', P .. 'size:' .. name)
  local stream = { key = P .. name, section = math.floor(tonumber(most) / 4), bytes = 0, begins = {} }
  if type(stored) == 'string' then
    local bytes, ids = string.match(stored, '^(%d+)(.*)$')
    stream.bytes = tonumber(bytes or 0)
    for id in string.gmatch(ids or '', '%S+') do
      stream.begins[#stream.begins + 1] = id
    end
  end
  capped[name] = stream
  return stream
end

local function count_entry(stream, id, ...)
  local bytes, texts = 0, { ... }
  for i = 1, #texts do
    bytes = bytes + #texts[i]
  end
  if stream.bytes > 0 and stream.bytes + bytes > stream.section then
    stream.bytes = 0
    local begins = stream.begins
    begins[#begins + 1] = id
    if #begins > 3 then
      redis.pcall('XTRIM', stream.key, 'MINID', table.remove(begins, 1))
    end
  end
  stream.bytes = stream.bytes + bytes
end

-- Appends an entry to a capped stream; answers its id, or the error. `entries` caps it by count as well, at once.
local function append_capped(name, bytes, entries, ...)
  local stream = capped[name] or load_size(name, bytes)
  local id
  if entries then
    id = redis.pcall('XADD', stream.key, 'MAXLEN', '~', entries, '*', ...)
  else
    id = redis.pcall('XADD', stream.key, '*', ...)
  end
  if type(id) == 'string' then
    count_entry(stream, id, ...)
  end
  return id
end

local function save_size(name, ttl)
  local stream = capped[name]
  local stored = table.concat({ int(stream.bytes), unpack(stream.begins) }, ' ')
  if ttl then
    redis.pcall('SET', P .. 'size:' .. name, stored, 'PX', ttl)
  else
    redis.pcall('SET', P .. 'size:' .. name, stored)
  end
  capped[name] = nil
end

-- An entry in the caller's replies; the key is built here, never taken from outside. It comes after what it tells of, and
-- is a hint where the record is the truth: one that cannot be written must not undo the bookkeeping of its entry.
local repliers = {}
local function reply(caller, ...)
  repliers[caller] = true
  append_capped('replies:' .. caller, REPLIES_BYTES, REPLIES_MAX, ...)
end

-- The outcome of a task for its caller. Large data stays in the record alone: the reply says that it is there.
local function reply_outcome(caller, id, state, data)
  if data and #data <= REPLY_DATA_BYTES then
    reply(caller, 'type', 'task.' .. state, 'task_id', id, 'data', data)
  else
    reply(caller, 'type', 'task.' .. state, 'task_id', id, 'at', 'record')
  end
end

-- The answer to one fact, which its stream and its entry id name together: ok, or an error's code and message. A batch's
-- ok answers to one caller go out together, those of each stream.
local accepted = {}
local function answer(caller, stream, fact, code, message, ...)
  if caller == '' then
    return
  end
  if code then
    reply(caller, 'type', 'fact.answered', 'stream', stream, 'fact', fact, 'ok', '0', 'code', code, 'message', message, ...)
    return
  end
  local of_stream = accepted[stream]
  if not of_stream then
    of_stream = {}
    accepted[stream] = of_stream
  end
  local facts = of_stream[caller]
  if not facts then
    facts = {}
    of_stream[caller] = facts
  end
  facts[#facts + 1] = fact
end

-- An answer that says more than ok: `data` is JSON.
local function answer_with(caller, stream, fact, data)
  if caller ~= '' then
    reply(caller, 'type', 'fact.answered', 'stream', stream, 'fact', fact, 'ok', '1', 'data', data)
  end
end

-- Runs one entry's bookkeeping: its word, and whether it failed; what it raises becomes its word, and the rest of the batch
-- goes on.
local function error_word(why)
  return 'ERROR ' .. (type(why) == 'table' and why.err or tostring(why))
end

local function guarded(handle, ...)
  local ok, word = pcall(handle, ...)
  if ok then
    return word, false
  end
  return error_word(word), true
end

-- The same for each of `count` entries: their words, and which have failed. What runs is left only when one has.
local function guard_each(count, handle)
  local words, failed, n = {}, {}, 0
  local function go_on()
    while n < count do
      n = n + 1
      words[n] = handle(n)
    end
  end
  while n < count do
    local ok, why = pcall(go_on)
    if not ok then
      words[n], failed[n] = error_word(why), true
    end
  end
  return words, failed
end

-- Writes to what the entries of a batch share are gathered and done once: command -> key -> arguments. Their number is
-- what a batch costs, more than what each of them does. Whoever gathers has proved the key's type before.
local gathered = {}
local function gather(command, key, one, two)
  local of_command = gathered[command]
  if not of_command then
    of_command = {}
    gathered[command] = of_command
  end
  local list = of_command[key]
  if not list then
    list = {}
    of_command[key] = list
  end
  list[#list + 1] = one
  if two then
    list[#list + 1] = two
  end
end

local function write_gathered()
  for command, of_command in pairs(gathered) do
    for key, list in pairs(of_command) do
      local count = 0
      for i = 1, #list, 1000 do
        count = count + call(command, key, unpack(list, i, math.min(i + 999, #list)))
      end
      of_command[key] = count
    end
  end
end

-- How many of the gathered writes of a command changed its key; to be asked when they are written.
local function written(command, key)
  return gathered[command] and gathered[command][key] or 0
end

-- Entries in a log, which is trimmed once a batch. As with a reply, one that cannot be written undoes nothing.
local logs = {}
local function log(name, ...)
  append_capped(name, name == 'log:progress' and PROGRESS_LOG_BYTES or LOG_BYTES, nil, ...)
  logs[name] = P .. name
end

-- Acknowledges and deletes consumed entries: a stream's length is its true backlog.
local function consume(stream, group, ids)
  if #ids > 0 then
    call('XACK', P .. stream, group, unpack(ids))
    call('XDEL', P .. stream, unpack(ids))
  end
end

-- Writes the counters and trims what was added to. Entries are consumed after it: where it fails, they stay.
local function finish()
  for _, key in pairs(logs) do
    redis.pcall('XTRIM', key, 'MAXLEN', '~', LOG_MAX)
  end
  for name, by in pairs(bumps) do
    if by ~= 0 then
      call('HINCRBY', P .. 'counters', name, int(by))
    end
  end
  for stream, of_stream in pairs(accepted) do
    for caller, facts in pairs(of_stream) do
      reply(caller, 'type', 'fact.answered', 'stream', stream, 'fact', table.concat(facts, ' '), 'ok', '1')
    end
  end
  for caller in pairs(repliers) do
    call('PEXPIRE', P .. 'replies:' .. caller, REPLIES_TTL)
    save_size('replies:' .. caller, REPLIES_TTL)
  end
  for name in pairs(capped) do
    save_size(name)
  end
end

-- The base of every script: namespace, time, counters, answers, and the loop over the entries of a batch.
-- keys: in:reports stream r | counters hash rw | replies:{caller} stream w | size:{stream} string rw
-- keys: log:progress stream w | log:reports stream w | log:learned stream w
-- KEYS[1]  the namespace prefix, such as "{coord}:". Every key is built from it, so all keys share its slot. The `keys`
--   lines of a file list the keys that the file itself names, with names and types as in coord/keys.py. r: it reads; w:
--   it writes or deletes. in:* stands for streams that ARGV names. Keys of an included part are in the header of that
--   part.
-- ARGV[1]  now, ms since 1970; empty: the server's TIME
-- ARGV[2]  limits, separated by spaces: name=value. Each file lists the limits that it reads.
-- LIMITS.log_entries  entries kept of each log (MAXLEN ~, trimmed once a batch); of log:tasks: events, checked once in 256
-- LIMITS.log_bytes  bytes kept of each log
-- LIMITS.progress_log_bytes  bytes kept of log:progress, log:reports and log:learned
-- LIMITS.replies_entries  entries kept of each replies stream (MAXLEN ~)
-- LIMITS.replies_bytes  bytes kept of it
-- LIMITS.reply_data_bytes  bytes of an outcome's data that a reply carries
-- LIMITS.replies_ttl_ms  ms that a replies stream lives after its last entry
local P = KEYS[1]
local LIMITS = {} -- texts, as commands take them
for name, value in string.gmatch(ARGV[2], '(%S+)=(%S+)') do
  LIMITS[name] = value
end
local REPLY_DATA_BYTES = tonumber(LIMITS.reply_data_bytes)
local call = redis.call

-- Returns a whole number as a string, never in the exponent form.
local function int(number)
  return string.format('%d', math.floor(number + 0.5))
end

local now = tonumber(ARGV[1])
if not now then
  local time = call('TIME')
  now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end
local NOW = int(now)

-- Returns the ms and the sequence number of an entry id.
local function entry_ms(id)
  local ms, seq = string.match(id, '^(%d+)%-(%d+)$')
  return tonumber(ms), tonumber(seq)
end

-- An entry has an effect only while it is in its stream. A worker that stood still between its read and its script may
-- name entries that a sibling has handled since. The word for such an entry is GONE. The first entry of a stream is
-- looked up. From the second one on, the server's data on the stream saves the lookups: an entry that is younger than
-- every deleted one, and not older than the first one, is in the stream.
local last_stream, last_entry, last_is_present
local checked_streams, bounds = {}, {}

local function is_there(stream, entry)
  return call('XRANGE', P .. stream, entry, entry)[1] ~= nil
end

-- Returns the id from which on no entry of a stream is missing; false if the server does not say.
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

-- Returns true if an entry is not older than a bound. Ids of 13 digits before the dash, the usual ones, compare as
-- text.
local byte, substring = string.byte, string.sub
local function is_beyond(entry, bound)
  if byte(entry, 14) == 45 and substring(entry, 1, 13) > bound.digits then
    return true
  end
  local ms, seq = entry_ms(entry)
  return ms > bound.ms or (ms == bound.ms and seq >= bound.seq)
end

-- Returns true while an entry is in its stream.
local function is_present(stream, entry)
  if entry == last_entry and stream == last_stream then -- the parts of one entry follow one another
    return last_is_present
  end
  if bounds[stream] == nil and checked_streams[stream] then
    bounds[stream] = bound_of(stream)
  end
  local bound = bounds[stream]
  last_stream, last_entry, checked_streams[stream] = stream, entry, true
  last_is_present = bound and is_beyond(entry, bound) or is_there(stream, entry)
  return last_is_present
end

-- Returns the time of the oldest entry in in:reports, in ms; false if there is none. It may report finished work.
local oldest_report
local function oldest_report_ms()
  if oldest_report == nil then
    local first = call('XRANGE', P .. 'in:reports', '-', '+', 'COUNT', 1)[1]
    oldest_report = first and entry_ms(first[1]) or false
  end
  return oldest_report
end

-- Returns true while in:reports holds an entry that may be older than this one, and so has to be read first. Ids of two
-- streams within one ms cannot be ordered.
local function reports_wait_before(entry)
  local oldest = oldest_report_ms()
  return oldest and oldest <= entry_ms(entry)
end

-- Counters are gathered and written once, at the end of the batch. This checks their type before the batch begins.
call('HLEN', P .. 'counters')
local bumps = {}
local function bump(name, by)
  bumps[name] = (bumps[name] or 0) + by
end

-- A capped stream (a log, replies, dead:in) never holds more bytes than its cap. Field names and values are counted.
-- The stream is divided into sections of a quarter of the cap. The key size:{stream} holds the bytes of the newest
-- section, then the ids at which the newest sections begin, three at most. When a section begins, entries older than the
-- oldest of these ids are trimmed. The key is read and written once for each stream and batch. Entries appended while there was
-- no such key are not counted; they are trimmed with the section that follows them.
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

-- Appends an entry to a capped stream; returns its id, or the error. `entries` also caps the stream by count, at once.
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

-- Appends an entry to the caller's replies. The key is built here, never taken from outside. A reply follows the change
-- that it reports, and is a hint where the record is the truth: a failed write must not undo the change.
local repliers = {}
local function reply(caller, ...)
  repliers[caller] = true
  append_capped('replies:' .. caller, LIMITS.replies_bytes, LIMITS.replies_entries, ...)
end

-- Sends the outcome of a task to its caller. Large data stays in the record only: the reply says that it is there.
local function reply_outcome(caller, id, state, data)
  if data and #data <= REPLY_DATA_BYTES then
    reply(caller, 'type', 'task.' .. state, 'task_id', id, 'data', data)
  else
    reply(caller, 'type', 'task.' .. state, 'task_id', id, 'at', 'record')
  end
end

-- Answers one fact, which its stream and its entry id identify together: ok, or an error's code and message. The ok
-- answers of a batch to one caller are sent together, one entry for each stream.
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

-- Answers ok with data: JSON.
local function answer_with(caller, stream, fact, data)
  if caller ~= '' then
    reply(caller, 'type', 'fact.answered', 'stream', stream, 'fact', fact, 'ok', '1', 'data', data)
  end
end

-- Runs `handle`; returns its word and false. If it raises an error, returns the error as a word and true: the rest of
-- the batch continues.
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

-- Does the same for each of `count` entries; returns their words, and which have failed. The loop is left only after an
-- error, so an entry does not cost a protected call.
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

-- Writes to keys that the entries of a batch share are gathered and done once: command -> key -> arguments. The number
-- of commands is the cost of a batch, more than what each of them does. The type of a key is checked before its first
-- gather.
local gathered = {}
local function gather(command, key, first, second)
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
  list[#list + 1] = first
  if second then
    list[#list + 1] = second
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

-- Returns how many of the gathered writes of a command changed its key. Valid after `write_gathered`.
local function written(command, key)
  return gathered[command] and gathered[command][key] or 0
end

-- Appends an entry to a log, which is trimmed once a batch. As with a reply, a failed write undoes nothing. What brief
-- logs hold matters for seconds only.
local logs, BRIEF = {}, { ['log:progress'] = true, ['log:reports'] = true, ['log:learned'] = true }
local function log(name, ...)
  append_capped(name, BRIEF[name] and LIMITS.progress_log_bytes or LIMITS.log_bytes, nil, ...)
  logs[name] = P .. name
end

-- Acknowledges and deletes consumed entries: the length of a stream is its true backlog.
local function consume(stream, group, ids)
  if #ids > 0 then
    call('XACK', P .. stream, group, unpack(ids))
    call('XDEL', P .. stream, unpack(ids))
  end
end

-- Writes the counters and the gathered answers, and trims the logs. Entries are consumed afterwards: if this fails,
-- they stay pending.
local function finish()
  for _, key in pairs(logs) do
    redis.pcall('XTRIM', key, 'MAXLEN', '~', LIMITS.log_entries)
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
    call('PEXPIRE', P .. 'replies:' .. caller, LIMITS.replies_ttl_ms)
    save_size('replies:' .. caller, LIMITS.replies_ttl_ms)
  end
  for name in pairs(capped) do
    save_size(name)
  end
end

local function finish_words(words)
  finish()
  return { words }
end

-- Closes a batch and consumes what is done; returns the script's result.
--   finish  finish_words, or finish_tasks in a script of tasks
--   words   one for each entry
--   group   consumer group
--   done    stream -> ids of the entries to consume
local function close_batch(finish_batch, words, group, done)
  local result = finish_batch(words)
  for stream, ids in pairs(done) do
    consume(stream, group, ids)
  end
  return result
end

-- Handles a batch of entries one by one, and closes it; returns the script's result. An entry is consumed unless it
-- failed or its word defers it. Fields of `batch`:
--   at      index in ARGV of the number of entries; their arguments follow, first of all the entry's id
--   width   number of arguments of an entry, or a function of the index of the first one
--   handle  function of the indexes of an entry's first and last argument; returns the entry's word
--   stream  of the entries, or a function of the index of the first argument
--   group   consumer group
--   finish  finish_words if absent, or finish_tasks
local DEFERS = { WAIT = true, MORE = true }
local function run_batch(batch)
  local words, done, first = {}, {}, batch.at + 1
  local width, stream = batch.width, batch.stream
  local width_of = type(width) == 'function' and width
  local stream_of = type(stream) == 'function' and stream
  for n = 1, tonumber(ARGV[batch.at]) do
    local last = first + (width_of and width_of(first) or width) - 1
    local word, failed = guarded(batch.handle, first, last)
    words[n] = word
    if not failed and not DEFERS[word] then
      local name = stream_of and stream_of(first) or stream
      local ids = done[name] or {}
      ids[#ids + 1] = ARGV[first]
      done[name] = ids
    end
    first = last + 1
  end
  return close_batch(batch.finish or finish_words, words, batch.group, done)
end

-- Returns the width of entries of which the last arguments are names and values. `fixed` arguments come before them;
-- the last one of these is the number of names.
local function width_with_fields(fixed)
  return function(first)
    return fixed + 2 * tonumber(ARGV[first + fixed - 1])
  end
end

-- A batch: the loop over its entries, the writes that they share, and its end.
-- include: base capped replies
-- keys: counters hash rw | replies:{caller} stream w
-- LIMITS.log_entries  entries kept of each log (MAXLEN ~, trimmed once a batch); of log:tasks: events, checked once in 256
-- LIMITS.replies_ttl_ms  ms that a replies stream lives after its last entry
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
-- gather. Commands are written in no defined order: so a batch gathers one command at most for a member of a key.
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
  local n = #list
  list[n + 1], list[n + 2] = first, second
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
--   audit   records who asked for an entry and its outcome, as in lib/audit; absent: nothing is recorded
--   defers  words that defer an entry; WAIT, MORE, NOT_HELD and BEHIND if absent
local DEFERS = { WAIT = true, MORE = true, NOT_HELD = true, BEHIND = true }
local function run_batch(batch)
  local words, done, first = {}, {}, batch.at + 1
  local width, stream, defers = batch.width, batch.stream, batch.defers or DEFERS
  local width_of = type(width) == 'function' and width
  local stream_of = type(stream) == 'function' and stream
  for n = 1, tonumber(ARGV[batch.at]) do
    local last = first + (width_of and width_of(first) or width) - 1
    local word, failed = guarded(batch.handle, first, last)
    words[n] = word
    if not failed and not defers[word] then
      local name = stream_of and stream_of(first) or stream
      local ids = done[name] or {}
      ids[#ids + 1] = ARGV[first]
      done[name] = ids
      if batch.audit and word ~= 'GONE' then
        batch.audit(name, ARGV[first], word)
      end
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

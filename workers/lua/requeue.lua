#!lua flags=allow-oom
-- Appends buried entries anew to the streams that they came from, on an operator's request.
-- include: base
-- keys: dead:in stream rw | in:* stream w | log:control stream w | in:control:{kind} stream w
-- ARGV[5] the kind of worker that was told
-- ARGV[6] number of streams that it reads, then each of them (without namespace)
-- then the number of requests, then for each: entry id | caller or '' | id of the entry in dead:in
-- Returns {words}. Words: OK; NOT_FOUND; FOREIGN (another kind of worker reads its stream); TRUNCATED (it was not kept
--   whole); GONE (its request was handled before); ERROR <why> (not consumed). An answer of ok says {"entry_id":id}: of the new entry, in its stream
-- Events in log:control: entry.replayed
local KIND = ARGV[5]
local STREAM = 'in:control:' .. KIND
local streams = {}
local at = 7
for _ = 1, tonumber(ARGV[6]) do
  streams[ARGV[at]] = true
  at = at + 1
end

local function requeue(i)
  local entry, caller, dead = unpack(ARGV, i, i + 2)
  if not is_present(STREAM, entry) then
    return 'GONE'
  end
  local found = call('XRANGE', P .. 'dead:in', dead, dead)[1]
  if not found then
    answer(caller, STREAM, entry, 'entry_not_found', "entry '" .. dead .. "' is not in dead:in")
    return 'NOT_FOUND'
  end
  local fields = {}
  for j = 1, #found[2], 2 do
    fields[found[2][j]] = found[2][j + 1]
  end
  local stream = fields.stream or ''
  if not streams[stream] then
    answer(caller, STREAM, entry, 'entry_not_found', "entry '" .. dead .. "' is of " .. stream .. ', which no ' .. KIND .. ' reads')
    return 'FOREIGN'
  elseif fields.whole ~= '1' then
    answer(caller, STREAM, entry, 'entry_truncated', "entry '" .. dead .. "' was not kept whole, so it cannot be replayed; whoever "
      .. 'appended it has to do so again')
    return 'TRUNCATED'
  end
  local anew = { 'type', fields.type, 'data', fields.data }
  if fields.caller then
    anew[5], anew[6] = 'caller', fields.caller
  end
  local id = call('XADD', P .. stream, '*', unpack(anew))
  call('XDEL', P .. 'dead:in', dead)
  bump('unburied', 1)
  log('log:control', 'type', 'entry.replayed', 'stream', stream, 'id', id, 'caller', caller)
  answer_with(caller, STREAM, entry, '{"entry_id":"' .. id .. '"}')
  return 'OK'
end

local words, done = {}, {}
for i = at + 1, at + tonumber(ARGV[at]) * 3, 3 do
  local word, failed = guarded(requeue, i)
  words[#words + 1] = word
  if not failed then
    done[#done + 1] = ARGV[i]
  end
end
finish()
consume(STREAM, KIND, done)
return { words }

#!lua flags=allow-oom
-- Appends dead-lettered entries again to the streams that they came from, on an operator's request.
-- include: base entries capped replies batches audit
-- keys: dead:in stream rw | in:* stream w | log:control stream w | in:control:{kind} stream w
-- ARGV[3]  the kind of worker that received the request
-- ARGV[4]  number of streams that it reads, then each of them, without namespace
-- then the number of requests, then for each:
--   entry | caller or '' | dead_id: of the entry in dead:in
-- Returns {words}. Words: OK; NOT_FOUND; FOREIGN (another kind of worker reads its stream); TRUNCATED (it was not kept
--   whole); GONE (the request was handled before); ERROR <why> (not consumed). An answer of ok has {"entry_id":id}, the
--   id of the new entry
-- Events in log:control: entry.replayed
local KIND = ARGV[3]
local STREAM = 'in:control:' .. KIND
local streams = {}
local at = 5
for _ = 1, tonumber(ARGV[4]) do
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
    answer(caller, STREAM, entry, 'entry_truncated', "entry '" .. dead .. "' was not kept whole, so it cannot be replayed; its "
      .. 'sender has to append it again')
    return 'TRUNCATED'
  end
  local copy = { 'type', fields.type, 'data', fields.data }
  for _, name in ipairs({ 'caller', 'by' }) do
    if fields[name] then
      copy[#copy + 1] = name
      copy[#copy + 1] = fields[name]
    end
  end
  local id = call('XADD', P .. stream, '*', unpack(copy))
  call('XDEL', P .. 'dead:in', dead)
  bump('unburied', 1)
  log('log:control', 'type', 'entry.replayed', 'stream', stream, 'id', id, 'caller', caller)
  answer_with(caller, STREAM, entry, '{"entry_id":"' .. id .. '"}')
  return 'OK'
end

return run_batch({ group = KIND, stream = STREAM, at = at, width = 3, handle = requeue, audit = audit })

#!lua flags=allow-oom
-- Buries entries that cannot be handled: into dead:in with a reason, acknowledged, and the caller is told.
-- include: base
-- keys: in:* stream rw | dead:in stream w
-- ARGV[5] what dead:in holds at most: entries (MAXLEN ~) | bytes, a space between
-- ARGV[6] the consumer group
-- ARGV[7] number of entries, then for each:
--   stream (without namespace) | entry id | type | data, cut to 4 KiB | 1: nothing was cut | caller or '' | code | reason
-- Returns the number buried
-- Events: none in a log; dead:in tells of what was buried
local DEAD_MAX, DEAD_BYTES = string.match(ARGV[5], '^(%d+) (%d+)$')
local stream_ids = {}
local buried = 0
for i = 8, 7 + tonumber(ARGV[7]) * 8, 8 do
  local stream, entry, kind, data, whole, caller, code, reason = unpack(ARGV, i, i + 7)
  -- An entry that someone else buried meanwhile is gone from its stream: it is not told of twice.
  if is_present(stream, entry) then
    local fields = { 'stream', stream, 'id', entry, 'type', kind, 'data', data, 'whole', whole, 'code', code, 'reason', reason }
    if caller ~= '' then
      fields[#fields + 1] = 'caller'
      fields[#fields + 1] = caller
    end
    local id = call('XADD', P .. 'dead:in', 'MAXLEN', '~', DEAD_MAX, '*', unpack(fields))
    count_entry(capped['dead:in'] or load_size('dead:in', DEAD_BYTES), id, unpack(fields))
    bump('buried', 1)
    buried = buried + 1
    answer(caller, stream, entry, code, reason)
  end
  stream_ids[stream] = stream_ids[stream] or {}
  table.insert(stream_ids[stream], entry)
end
finish()
for stream, ids in pairs(stream_ids) do
  consume(stream, ARGV[6], ids)
end
return buried

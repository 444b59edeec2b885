#!lua flags=allow-oom
-- Moves entries that cannot be handled to dead:in, with a reason, and answers their callers.
-- include: base
-- keys: in:* stream rw | dead:in stream w
-- LIMITS.dead_in_entries  entries kept of dead:in (MAXLEN ~)
-- LIMITS.dead_in_bytes  bytes kept of it
-- ARGV[3]  the consumer group
-- ARGV[4]  number of entries, then for each:
--   stream, without namespace | entry | kind: its type | data, cut to 4 KiB | whole: 1 if nothing was cut | caller or ''
--   | code | reason
-- Returns the number of entries moved
-- Events: none in a log; dead:in itself has the entries
local done, moved = {}, 0
for i = 5, 4 + tonumber(ARGV[4]) * 8, 8 do
  local stream, entry, kind, data, whole, caller, code, reason = unpack(ARGV, i, i + 7)
  -- An entry that another worker moved meanwhile is gone from its stream: it is not answered twice.
  if is_present(stream, entry) then
    local fields = { 'stream', stream, 'id', entry, 'type', kind, 'data', data, 'whole', whole, 'code', code, 'reason', reason }
    if caller ~= '' then
      fields[#fields + 1] = 'caller'
      fields[#fields + 1] = caller
    end
    local id = call('XADD', P .. 'dead:in', 'MAXLEN', '~', LIMITS.dead_in_entries, '*', unpack(fields))
    count_entry(capped['dead:in'] or load_size('dead:in', LIMITS.dead_in_bytes), id, unpack(fields))
    bump('buried', 1)
    moved = moved + 1
    answer(caller, stream, entry, code, reason)
  end
  done[stream] = done[stream] or {}
  table.insert(done[stream], entry)
end
finish()
for stream, ids in pairs(done) do
  consume(stream, ARGV[3], ids)
end
return moved

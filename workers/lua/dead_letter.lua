#!lua flags=allow-oom
-- Moves entries that cannot be handled to dead:in, with a reason, and answers their callers.
-- include: base entries capped replies batches audit
-- keys: in:* stream rw | dead:in stream w
-- LIMITS.dead_in_entries  entries kept of dead:in (MAXLEN ~)
-- LIMITS.dead_in_bytes  bytes kept of it
-- ARGV[3]  the consumer group
-- ARGV[4]  number of entries, then for each:
--   stream, without namespace | entry | kind: its type | data, cut to 4 KiB | whole: 1 if nothing was cut | caller or ''
--   | by: who asked for it, or '' | code | reason
-- Returns the number of entries moved
-- Events: none in a log; dead:in itself has the entries
local done, moved = {}, 0
for i = 5, 4 + tonumber(ARGV[4]) * 9, 9 do
  local stream, entry, kind, data, whole, caller, by, code, reason = unpack(ARGV, i, i + 8)
  -- An entry that another worker moved meanwhile is gone from its stream: it is not answered twice.
  if is_present(stream, entry) then
    local fields = { 'stream', stream, 'id', entry, 'type', kind, 'data', data, 'whole', whole, 'code', code, 'reason', reason }
    for _, field in ipairs({ { 'caller', caller }, { 'by', by } }) do
      if field[2] ~= '' then
        fields[#fields + 1] = field[1]
        fields[#fields + 1] = field[2]
      end
    end
    local id = call('XADD', P .. 'dead:in', 'MAXLEN', '~', LIMITS.dead_in_entries, '*', unpack(fields))
    count_entry(capped['dead:in'] or load_size('dead:in', LIMITS.dead_in_bytes), id, unpack(fields))
    bump('buried', 1)
    moved = moved + 1
    audit(stream, entry, code)
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

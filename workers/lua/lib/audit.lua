-- The audit: who asked for a change, what it was, and what became of it. The script that makes the change records it.
-- include: base capped
-- keys: log:audit stream w | in:control:{kind} stream r
local AUDITED_BYTES = 4096

-- Records the outcome of an entry that is about to be consumed. Its field `by` says who asked for it. Only operators
-- may append to the control streams; what agents and clients append to others is not audited. `note` replaces the data
-- of the entry: opaque JSON.
local function audit(stream, entry, word, note)
  if string.sub(stream, 1, 11) ~= 'in:control:' then
    return
  end
  local found = redis.pcall('XRANGE', P .. stream, entry, entry)
  found = type(found) == 'table' and found[1]
  if not found then
    return
  end
  local fields = {}
  for i = 1, #found[2], 2 do
    fields[found[2][i]] = found[2][i + 1]
  end
  local by = fields.by ~= '' and fields.by or 'client ' .. (fields.caller or 'without an id')
  log(
    'log:audit', 'type', string.sub(fields.type or '', 1, 256), 'by', string.sub(by, 1, 256), 'outcome',
    string.lower(string.match(word, '^%S+')), 'data', string.sub(note or fields.data or '', 1, AUDITED_BYTES)
  )
end

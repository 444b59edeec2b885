-- The audit: who asked for a change, what it was, and what became of it. The script that makes the change records it.
-- include: base capped
-- keys: log:audit stream w | in:control:{kind} stream r | in:requests stream r
local AUDITED_BYTES = 4096

-- Records the outcome of an entry that is about to be consumed. Its field `by` says who asked for it. What agents append
-- is not audited, nor a request of a client without `by`. `note` replaces the data of the entry: opaque JSON.
local function audit(stream, entry, word, note)
  local is_control = string.sub(stream, 1, 11) == 'in:control:'
  if not is_control and stream ~= 'in:requests' then
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
  local by = fields.by or is_control and 'client ' .. (fields.caller or 'without an id')
  if by then
    log(
      'log:audit', 'type', fields.type or '', 'by', string.sub(by, 1, 256), 'outcome',
      string.lower(string.match(word, '^%S+')), 'data', string.sub(note or fields.data or '', 1, AUDITED_BYTES)
    )
  end
end

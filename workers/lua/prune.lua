#!lua flags=allow-oom
-- Removes the records of agents that left, or turned stale, long ago, on an operator's request.
-- include: base entries replies batches departed audit
-- keys: agents:departed zset r | in:control:{kind} stream w
-- LIMITS.removals  maximum number of removals for one request
-- ARGV[3]  number of requests, then for each:
--   entry | caller or '' | age_ms: minimum time since the agent left
-- Returns {words}. Words: OK; GONE (the entry was handled before); ERROR <why> (not consumed). An answer of ok has
--   {"pruned":n,"left":n,"kept":n,"unread":n}: how many were removed, how many of that age may be removed by another
--   request, how many stay because tasks of theirs have not been taken back yet, and how many unread entries ended
local STREAM, MOST = 'in:control:registry', tonumber(LIMITS.removals)

local function prune(i)
  local entry, caller, age = unpack(ARGV, i, i + 2)
  if not is_present(STREAM, entry) then
    return 'GONE'
  end
  local until_ms = int(entry_ms(entry) - tonumber(age))
  local pruned, kept, unread_before = 0, 0, unread_ended
  for _, id in ipairs(call('ZRANGEBYSCORE', P .. 'agents:departed', '-inf', until_ms, 'LIMIT', 0, MOST)) do
    local word = guarded(forget, id)
    if word == 'FORGOTTEN' then
      pruned = pruned + 1
    elseif word ~= 'HERE' and word ~= 'UNREAD' then
      kept = kept + 1
    end
  end
  local left = call('ZCOUNT', P .. 'agents:departed', '-inf', until_ms) - kept
  answer_with(caller, STREAM, entry, '{"pruned":' .. int(pruned) .. ',"left":' .. int(left) .. ',"kept":' .. int(kept)
    .. ',"unread":' .. int(unread_ended - unread_before) .. '}')
  return 'OK'
end

return run_batch({ group = 'registry', stream = STREAM, at = 3, width = 3, handle = prune, audit = audit })

#!lua flags=allow-oom
-- Changes the token of an agent on an operator's request: enrols the agent, replaces its token, or revokes it. Only the
-- digests of tokens are known here.
-- include: base entries capped replies batches audit
-- keys: token:{id} hash rw | tokens hash w | log:control stream w | in:control:{kind} stream w
-- ARGV[3]  number of requests, then for each:
--   entry | caller or '' | agent_id | action: enrol, rotate or revoke | digest: SHA-256 of the token, '' to revoke
--   | grace_ms: for which the earlier token stays valid, 0 unless it rotates
-- LIMITS.revoked_ttl_ms  ms for which it is known that a token was revoked
-- Returns {words}. Words: OK; DUPLICATE (it is the token already); ENROLLED (it has another token); NOT_ENROLLED; STALE
--   (a later request of an operator came first); GONE (the entry was handled before); ERROR <why> (not consumed)
-- Events in log:control: token.enrolled, token.rotated, token.revoked
local STREAM = 'in:control:registry'
local EVENTS = { enrol = 'token.enrolled', rotate = 'token.rotated', revoke = 'token.revoked' }

local function change_token(i)
  local entry, caller, id, action, digest, grace = unpack(ARGV, i, i + 5)
  if not is_present(STREAM, entry) then
    return 'GONE'
  end
  local key = P .. 'token:' .. id
  local current, fact_id, previous = unpack(call('HMGET', key, 'current', 'fact_id', 'previous'))
  if current and current == digest then
    answer(caller, STREAM, entry)
    return 'DUPLICATE'
  elseif not is_later(entry, fact_id) then
    answer(caller, STREAM, entry, 'token_invalid', "a later request about the token of agent '" .. id .. "' came first")
    return 'STALE'
  elseif action == 'enrol' and current then
    answer(caller, STREAM, entry, 'agent_enrolled', "agent '" .. id .. "' has a token already: rotate or revoke it")
    return 'ENROLLED'
  elseif action ~= 'enrol' and not current then
    answer(caller, STREAM, entry, 'agent_not_enrolled', "agent '" .. id .. "' has no token: enrol it first")
    return 'NOT_ENROLLED'
  end
  call('HDEL', key, 'current', 'previous', 'previous_until')
  call('HSET', key, 'fact_id', entry)
  if previous then
    call('HDEL', P .. 'tokens', previous)
  end
  local has_grace = action == 'rotate' and tonumber(grace) > 0
  if current and not has_grace then
    call('HDEL', P .. 'tokens', current)
  end
  if action == 'revoke' then
    call('PEXPIRE', key, LIMITS.revoked_ttl_ms)
  else
    call('PERSIST', key)
    call('HSET', key, 'current', digest)
    call('HSET', P .. 'tokens', digest, id)
  end
  if has_grace then
    call('HSET', key, 'previous', current, 'previous_until', int(now + tonumber(grace)))
  end
  log('log:control', 'type', EVENTS[action], 'agent_id', id, 'caller', caller)
  answer(caller, STREAM, entry)
  return 'OK'
end

return run_batch({ group = 'registry', stream = STREAM, at = 3, width = 6, handle = change_token, audit = audit })

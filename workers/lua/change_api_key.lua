#!lua flags=allow-oom
-- Creates or revokes a key of the HTTP API on an operator's request. Only the digests of keys are known here.
-- include: base entries capped replies batches audit
-- keys: api_key:{id} hash rw | api_keys zset rw | log:control stream w | in:control:{kind} stream w
-- ARGV[3]  number of requests, then for each:
--   entry | caller or '' | key_id | action: create or revoke | digest: SHA-256 of the key, '' to revoke | role
--   | agent_id or '' | name or '' | lifetime_ms or ''
-- LIMITS.api_keys  maximum number of keys
-- Returns {words}. Words: OK; DUPLICATE (it was created before); TAKEN (another key has the id); FULL; NOT_FOUND;
--   GONE (the entry was handled before); ERROR <why> (not consumed)
-- Events in log:control: api_key.created, api_key.revoked
local STREAM = 'in:control:registry'

local function change_api_key(i)
  local entry, caller, id, action, digest, role, agent, name, lifetime = unpack(ARGV, i, i + 8)
  if not is_present(STREAM, entry) then
    return 'GONE'
  end
  local key = P .. 'api_key:' .. id
  local current = call('HGET', key, 'digest')
  if action == 'revoke' then
    if not current then
      answer(caller, STREAM, entry, 'api_key_not_found', "no API key has the id '" .. id .. "'")
      return 'NOT_FOUND'
    end
    call('DEL', key)
    call('ZREM', P .. 'api_keys', id)
    log('log:control', 'type', 'api_key.revoked', 'key_id', id, 'caller', caller)
    answer(caller, STREAM, entry)
    return 'OK'
  elseif current == digest then
    answer(caller, STREAM, entry)
    return 'DUPLICATE'
  elseif current then
    answer(caller, STREAM, entry, 'id_conflict', "another API key has the id '" .. id .. "'")
    return 'TAKEN'
  elseif call('ZCARD', P .. 'api_keys') >= tonumber(LIMITS.api_keys) then
    answer(caller, STREAM, entry, 'api_keys_full', 'there are ' .. LIMITS.api_keys .. ' API keys: revoke some first')
    return 'FULL'
  end
  call('HSET', key, 'digest', digest, 'role', role, 'created_at', NOW, 'created_by', caller)
  if agent ~= '' then
    call('HSET', key, 'agent_id', agent)
  end
  if name ~= '' then
    call('HSET', key, 'name', name)
  end
  if lifetime ~= '' then
    call('HSET', key, 'expires_at', int(now + tonumber(lifetime)))
  end
  call('ZADD', P .. 'api_keys', '0', id)
  log('log:control', 'type', 'api_key.created', 'key_id', id, 'role', role, 'agent_id', agent, 'caller', caller)
  answer(caller, STREAM, entry)
  return 'OK'
end

return run_batch({ group = 'registry', stream = STREAM, at = 3, width = 9, handle = change_api_key, audit = audit })

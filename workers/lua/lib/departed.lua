-- The end of an agent's record: nothing of an agent that left, or is silent, is kept.
-- include: base capped
-- keys: agent:{id} hash rw | agents:departed zset w | agents:lost zset w | agents:all set w | agents:health zset w
-- keys: agents:by:{facet}:{value} set w | inflight:{agent} set r | inbox:{agent}:{lane} stream w | suspended hash w
-- keys: counters hash rw | log:agents stream w
-- Events in log:agents: agent.forgotten
-- Removes an agent. It must still be away, and have nothing in flight, or its tasks would be lost.
local AWAY = { inactive = true, stale = true }
local function forget(id)
  local key = P .. 'agent:' .. id
  local status = call('HGET', key, 'status')
  if status and not AWAY[status] then
    call('ZREM', P .. 'agents:departed', id)
    return 'HERE'
  elseif call('SCARD', P .. 'inflight:' .. id) > 0 then
    call('ZADD', P .. 'agents:lost', 'NX', NOW, id)
    return 'HOLDS'
  end
  for facet in string.gmatch(call('HGET', key, 'facets') or '', '%S+') do
    call('SREM', P .. 'agents:by:' .. facet, id)
  end
  call('SREM', P .. 'agents:by:status:' .. (status or 'inactive'), id)
  call('SREM', P .. 'agents:all', id)
  call('ZREM', P .. 'agents:health', id)
  call('ZREM', P .. 'agents:departed', id)
  for _, lane in ipairs({ 'critical', 'high', 'normal', 'low' }) do
    call('DEL', P .. 'inbox:' .. id .. ':' .. lane)
  end
  local rev = tonumber(call('HGET', key, 'rev') or 0) or 0
  if rev > (tonumber(call('HGET', P .. 'counters', 'forgotten_rev') or 0) or 0) then
    call('HSET', P .. 'counters', 'forgotten_rev', int(rev))
  end
  call('DEL', key)
  call('HDEL', P .. 'suspended', id)
  log('log:agents', 'type', 'agent.forgotten', 'agent_id', id)
  return 'FORGOTTEN'
end

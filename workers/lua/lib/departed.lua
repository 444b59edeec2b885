-- The end of an agent's record: nothing of an agent that left, or is silent, is kept. What it has not read becomes dead
-- letters, and its links end.
-- include: base capped facets links unread
-- keys: agent:{id} hash rw | agents:departed zset w | agents:lost zset w | agents:all set w | agents:health zset w
-- keys: agents:pushed set w | inflight:{agent} set r | inbox:{agent}:{lane} stream rw | suspended hash w
-- keys: counters hash rw | log:agents stream w | agents:by:{facet}:{value} set w
-- Events in log:agents: agent.forgotten
-- Unread entries and links that one call of a script ends, about, of all agents: some milliseconds of the server's time.
local ends_left, unread_ended = 500, 0

-- Ends the messages in the inbox of an agent; returns true when none is left.
local function end_inbox(id)
  for _, lane in ipairs({ 'critical', 'high', 'normal', 'low' }) do
    local key = P .. 'inbox:' .. id .. ':' .. lane
    local count = call('XLEN', key)
    if count > 0 then
      for _, item in ipairs(call('XRANGE', key, '-', '+', 'COUNT', ends_left)) do
        end_unread(item[1], item[2], 'agent_left', "agent '" .. id .. "' left, and its record was removed")
        call('XDEL', key, item[1])
        ends_left, unread_ended, count = ends_left - 1, unread_ended + 1, count - 1
      end
    end
    if count > 0 or ends_left <= 0 then
      return false
    end
    call('DEL', key)
  end
  return true
end

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
  elseif ends_left <= 0 or not end_inbox(id) then
    return 'UNREAD'
  end
  ends_left = ends_left - end_all_links(id)
  for facet in string.gmatch(call('HGET', key, 'facets') or '', '%S+') do
    remove_facet(id, facet)
  end
  call('SREM', P .. 'agents:by:status:' .. (status or 'inactive'), id)
  call('SREM', P .. 'agents:all', id)
  call('SREM', P .. 'agents:pushed', id)
  call('ZREM', P .. 'agents:health', id)
  call('ZREM', P .. 'agents:departed', id)
  local rev = tonumber(call('HGET', key, 'rev') or 0) or 0
  if rev > (tonumber(call('HGET', P .. 'counters', 'forgotten_rev') or 0) or 0) then
    call('HSET', P .. 'counters', 'forgotten_rev', int(rev))
  end
  call('HSET', P .. 'counters', 'forgotten_at', NOW)
  call('DEL', key)
  call('HDEL', P .. 'suspended', id)
  log('log:agents', 'type', 'agent.forgotten', 'agent_id', id)
  return 'FORGOTTEN'
end

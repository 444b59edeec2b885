#!lua
-- Ends the waits of requests whose deadlines have passed, and advances the clock of requests.
-- include: base batches messages requests
-- keys: requests zset rw | clock hash w | message:{id} hash r | in:messages:{lane} stream r
-- LIMITS.requests  maximum number of requests that are ended
-- Returns {words}. Words: TIMED_OUT; UNHEARD (the requester cannot be informed: it is gone, or its lane is full); GONE
--   (it does not wait); ERROR <why> (tried again in a minute)
-- Events in log:messages: request.timed_out, message.delivered

-- ms by which a request that raised an error is delayed, so that broken records cannot crowd out the others.
local ERROR_DELAY = 60000
-- ms; a longer step means that no router worked, Redis was unavailable, or the server's time was changed.
local ABSENCE = 1000
-- ms for which the clock waits after an absence: agents reconnect, and reply to what they handled meanwhile.
local RECONNECT = 1500

-- Advances the clock to now, or to the oldest message that waits; returns it.
local function tick()
  local clock, at = read_request_clock()
  local until_ms = now
  for _, lane in ipairs({ 'critical', 'high', 'normal', 'low' }) do
    local oldest = call('XRANGE', P .. 'in:messages:' .. lane, '-', '+', 'COUNT', 1)[1]
    if oldest then
      until_ms = math.min(until_ms, (entry_ms(oldest[1])))
    end
  end
  local step = until_ms - at
  if at > now + RECONNECT then
    at = now -- the server's time was set back
  elseif step > 0 then
    clock = clock + math.min(REQUEST_STEP, step)
    at = step > ABSENCE and until_ms + RECONNECT or until_ms
  end
  call('HSET', P .. 'clock', 'requests', int(clock), 'requests_at', int(at))
  return clock
end

local function time_out(id)
  local values = call('HMGET', P .. 'message:' .. id, 'request', 'sender_id', 'receiver_id', 'priority', 'conversation', 'hops',
    'requested_by', 'traceparent', 'reply_by', 'sent_at')
  local state, sender, receiver, lane, conversation, hops, caller, traceparent, reply_by, sent_at = unpack(values, 1, 10)
  if state ~= 'open' then
    call('ZREM', P .. 'requests', id)
    return 'GONE'
  end
  local json, status, depth = last_known(receiver)
  local waited = string.format('%g', (tonumber(reply_by) - tonumber(sent_at)) / 1000)
  local reason = "agent '" .. receiver .. "' did not reply within " .. waited .. ' s; its status is ' .. status
  end_wait(id, 'timed_out')
  bump('requests_timed_out', 1)
  log_message('request.timed_out', id, 'sender_id', sender, 'receiver_id', receiver, 'receiver_status', status,
    'receiver_inbox', int(depth))
  local request = { id = id, sender = sender, lane = lane, conversation = conversation or nil, hops = tonumber(hops or 0),
    caller = caller or nil, traceparent = traceparent or nil }
  local data = '{"code":"request_timed_out","message":"' .. reason .. '","receiver":' .. json .. '}'
  return answer_request(request, '.timeout', data, '1') and 'TIMED_OUT' or 'UNHEARD'
end

if waiting_requests == 0 then
  return { {} }
end
local clock, words = tick(), {}
for _, id in ipairs(call('ZRANGEBYSCORE', P .. 'requests', '-inf', int(clock), 'LIMIT', 0, LIMITS.requests)) do
  local word, failed = guarded(time_out, id)
  if failed then
    call('ZADD', P .. 'requests', int(clock + ERROR_DELAY), id)
  end
  words[#words + 1] = word
end
return finish_messages(words)

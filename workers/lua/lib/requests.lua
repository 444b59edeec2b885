-- Requests: messages whose senders wait for a reply. Their deadlines, and what the coordinator answers itself.
-- include: base replies messages conversations
-- keys: requests zset rw | clock hash rw | message:{id} hash rw | agent:{id} hash r | agents:departed zset r
-- keys: inbox:{agent}:{lane} stream r | conversation:{id} zset r | messages:dead zset r
-- Deadlines are on the clock of requests. It stands still while no router works, while Redis is unavailable and while no
-- request waits, and never passes a message that waits to be read (end_requests advances it). So a reply that was sent
-- in time is never late because the coordinator was absent. It has advanced up to `requests_at` of the server's time.
local COORDINATOR = 'coordinator' -- the sender of its answers, and in place of the digest of their content
local REQUEST_STEP = 500 -- ms that it advances in one step at most

-- The types of the keys that every batch may write to are checked before anything begins.
local waiting_requests = call('ZCARD', P .. 'requests')

local function read_request_clock()
  local values = call('HMGET', P .. 'clock', 'requests', 'requests_at')
  return tonumber(values[1] or now), tonumber(values[2] or now)
end

-- Sets the deadline of a request, so many ms from now.
local function await_reply(id, ms)
  local clock, at = read_request_clock()
  if waiting_requests == 0 then
    at = now
    call('HSET', P .. 'clock', 'requests', int(clock), 'requests_at', NOW)
  end
  waiting_requests = waiting_requests + 1
  call('ZADD', P .. 'requests', int(clock + math.max(0, math.min(REQUEST_STEP, now - at)) + ms), id)
end

-- Ends the wait of a request; unless it is a dead letter in the index, its record expires like that of any message from
-- now on.
local function end_wait(id, state)
  local key = P .. 'message:' .. id
  call('ZREM', P .. 'requests', id)
  call('HSET', key, 'request', state)
  if not call('ZSCORE', P .. 'messages:dead', id) then
    local expires_at = tonumber(call('HGET', key, 'expires_at') or nil) or now
    call('PEXPIRE', key, int(KEPT + math.max(0, expires_at - now)))
  end
end

-- Returns the request that a message answers; nil if it answers none. Only the receiver of a request can end it: any
-- sender may name it in `reply_to`.
local function request_of(message)
  local request = message.answers
  return request and request.request and request.sender == message.receiver and request.receiver == message.sender
    and request or nil
end

-- Returns true if a message answers a request too late: the requester was sent something else before.
local function is_late(message)
  local request = request_of(message)
  return request and request.request ~= 'open' and request.request ~= 'answered'
end

-- Ends the request that a delivered message answers.
local function end_request_of(message)
  local request = request_of(message)
  if request and request.request == 'open' then
    end_wait(request.id, 'answered')
  end
end

-- Returns true if the sender of a message can get an answer: it is an agent, or it reads the replies of its fact.
local function can_be_answered(sender, caller)
  return caller == sender or call('EXISTS', P .. 'agent:' .. sender) == 1
end

-- Returns where the answers to a request go: to the replies of this caller; nil: to the inbox of its sender.
local function caller_for_answers(sender, caller)
  if caller ~= '' and caller == sender and call('EXISTS', P .. 'agent:' .. sender) == 0 then
    return caller
  end
end

-- Returns the fields of a message as a client gets it among its replies: those of an inbox entry.
local function reply_fields_of(message)
  return add_optional({ 'message_type', message.kind, 'data', message.payload, 'id', message.id, 'sender_id', message.sender,
    'receiver_id', message.receiver, 'priority', message.lane, 'timestamp', int(message.sent_at),
    'expires_at', int(message.expires_at) }, message,
    OPTIONAL)
end

-- Sends a message to a client that asked for it, among its replies.
local function reply_to_client(message, caller)
  reply(caller, 'type', 'message.received', unpack(reply_fields_of(message)))
  bump('messages_delivered', 1)
  log_message('message.delivered', message.id, 'sender_id', message.sender, 'receiver_id', message.receiver)
end

-- Returns true if an agent, which may have left, can get one more message.
local function can_get(agent_id, lane)
  return call('EXISTS', P .. 'agent:' .. agent_id) == 1
    and call('XLEN', P .. 'inbox:' .. agent_id .. ':' .. lane) < QUOTA + (lane == 'critical' and CRITICAL_EXTRA or 0)
end

-- Returns the id of the coordinator's answer to a request. It is the request's with a suffix, unless some sender has used
-- that id before.
local function answer_id(request_id, suffix)
  local id = request_id .. suffix
  while call('EXISTS', P .. 'message:' .. id) == 1 do
    id = redis.sha1hex(id) .. suffix
  end
  return id
end

-- Answers a request, or a message to the coordinator, in the coordinator's name. Fields of `request`: id sender lane
-- conversation hops traceparent caller (of a client). The answer has a record of its own, so its chain goes on from the
-- request's. Returns false if it has no room in the sender's inbox.
local function answer_request(request, suffix, data, failed)
  local lane = request.lane
  if not request.caller and not can_get(request.sender, lane) then
    return false
  end
  local message = {
    id = answer_id(request.id, suffix), kind = 'direct', payload = data, sender = COORDINATOR,
    receiver = request.sender, lane = lane, sent_at = now, expires_at = now + KEPT, reply_to = request.id, failed = failed,
    conversation = request.conversation or request.id, correlation_id = request.conversation or request.id,
    parent = request.id, hops = request.hops + 1, traceparent = request.traceparent,
  }
  message.place = call('ZCARD', P .. 'conversation:' .. message.conversation)
  if message.place >= 2 * CONVERSATION_MOST then
    message.conversation = nil -- it is not listed
  end
  local entry
  if request.caller then
    reply_to_client(message, request.caller)
  else
    entry = push_to_inbox(message, request.sender)
    note_history(request.sender, message.id)
    log_message('message.delivered', message.id, 'sender_id', message.sender, 'receiver_id', message.receiver)
  end
  call('HSET', P .. 'message:' .. message.id, unpack(add_place({ 'digest', COORDINATOR, 'sender_id', message.sender,
    'receiver_id', message.receiver, 'message_type', message.kind, 'priority', lane, 'status', 'delivered', 'sent_at', NOW,
    'expires_at', int(message.expires_at), 'reason', '', 'body', data, 'protocol', 'direct', 'inbox_entry', entry or '' }, message)))
  call('PEXPIRE', P .. 'message:' .. message.id, int(2 * KEPT))
  index_message(message, 2 * KEPT, 2 * CONVERSATION_MOST)
  return true
end

-- Returns the last known state of an agent as JSON, and as words: its status (unknown: it has no record), since when
-- it is stale or gone, its last heartbeat (both ms), and the number of entries in its inbox.
local function last_known(agent_id)
  local values = call('HMGET', P .. 'agent:' .. agent_id, 'status', 'last_heartbeat')
  local status, depth = values[1] or 'unknown', 0
  for _, lane in ipairs({ 'critical', 'high', 'normal', 'low' }) do
    depth = depth + call('XLEN', P .. 'inbox:' .. agent_id .. ':' .. lane)
  end
  local since = values[1] and call('ZSCORE', P .. 'agents:departed', agent_id)
  local json = '{"agent_id":"' .. agent_id .. '","status":"' .. status .. '"'
    .. (since and ',"since":' .. int(tonumber(since)) or '')
    .. (tonumber(values[2] or nil) and ',"last_heartbeat":' .. int(tonumber(values[2])) or '') .. ',"inbox":' .. int(depth) .. '}'
  return json, status, depth
end

#!lua
-- Delivers a broadcast to the next chunk of its recipients. What each of them got is recorded in the same step, so every
-- call continues where the last one ended, whichever router made it.
-- include: base replies batches lanes messages
-- keys: message:{id} hash rw | recipients:{id} list rw | outcomes:{id} list rw | in:messages:{lane} stream w
-- keys: messages:dead zset w
-- ARGV[3]  number of broadcasts, then for each:
--   entry | lane | caller or '' | message_id | name of the router
-- Returns {words}. Words: MORE (call again); DELIVERED (to the last of them; the entry is consumed); DUPLICATE (it was
--   delivered to all of them by another entry; the entry is consumed); GONE (the entry was
--   handled before); NOT_HELD (the router does not hold the lane), BEHIND (an older entry waits), ERROR <why>: not
--   consumed
-- Events in log:messages: message.delivered (once for the broadcast), message.dead (for a recipient)

-- Records a dead letter of one recipient: a message of its own, which can be replayed. Its id is the same each time.
local function bury(message, receiver, code, reason)
  local id = redis.sha1hex(message.id .. ' ' .. receiver)
  call('DEL', P .. 'message:' .. id)
  call('ZADD', P .. 'messages:dead', NOW, id)
  call('HSET', P .. 'message:' .. id, 'digest', id, 'sender_id', message.sender, 'receiver_id', receiver,
    'message_type', message.kind, 'priority', message.lane, 'status', 'dead', 'sent_at', int(message.sent_at),
    'expires_at', int(message.expires_at), 'reason', reason, 'code', code, 'body', message.payload,
    'correlation_id', message.correlation_id, 'reply_to', '', 'protocol', 'direct', 'hops', int(message.hops),
    'traceparent', message.traceparent)
  log_message('message.dead', id, 'sender_id', message.sender, 'receiver_id', receiver, 'code', code, 'reason', reason,
    'broadcast_id', message.id)
  if code ~= 'agent_not_found' then
    note_history(receiver, id)
  end
end

-- Delivers to one recipient; returns the id of the entry in its inbox, or nil, a code and a reason.
local function deliver_to(message, receiver)
  local word, code, reason = undeliverable(message.lane, receiver, message.expires_at)
  if word then
    return nil, code, reason
  end
  message.fields[RECEIVER] = receiver
  local entry = append_to_inbox(message, receiver, message.fields)
  note_history(receiver, message.id)
  return entry
end

-- Delivers to the recipients of a chunk; returns their outcomes, and how many got the message.
local function deliver_chunk(message, chunk)
  local outcomes, delivered = {}, 0
  message.fields = inbox_fields(message, '')
  for receiver in string.gmatch(chunk, '%S+') do
    local ok, outcome, code, reason = pcall(deliver_to, message, receiver)
    if not ok then
      outcome, code, reason = nil, 'message_undeliverable', error_word(outcome)
    end
    if outcome then
      delivered = delivered + 1
    elseif code ~= 'message_expired' then
      guarded(bury, message, receiver, code, reason)
    end
    outcomes[#outcomes + 1] = outcome or code
  end
  return outcomes, delivered
end

local function deliver(i)
  local entry, lane, caller, id, name = unpack(ARGV, i, i + 4)
  local stream, key = 'in:messages:' .. lane, P .. 'message:' .. id
  local recipients, outcomes = P .. 'recipients:' .. id, P .. 'outcomes:' .. id
  local displaced = lane_refusal(lane, entry)
  if displaced then
    return displaced
  end
  local values = call('HMGET', key, 'status', 'sender_id', 'message_type', 'body', 'correlation_id', 'sent_at',
    'expires_at', 'recipients', 'delivered', 'dead', 'hops', 'traceparent', 'priority')
  local status, sender, kind, payload, correlation, sent_at, expires_at, total, delivered, dead, hops, traceparent, inbox_lane =
    unpack(values, 1, 13)
  if status == 'delivered' then
    -- It was sent twice, on two lanes, and the router of the other lane was faster.
    answer_with(caller, stream, entry, '{"recipients":' .. total .. ',"delivered":' .. delivered .. '}')
    return 'DUPLICATE'
  elseif status ~= 'delivering' then
    error("the record of broadcast '" .. id .. "' is " .. (status or 'gone'))
  end
  local message = {
    id = id, kind = kind, payload = payload, sender = sender, receiver = '', lane = inbox_lane, sent_at = tonumber(sent_at),
    expires_at = tonumber(expires_at), correlation_id = correlation or '', protocol = 'broadcast',
    hops = tonumber(hops or 0), traceparent = traceparent or '',
  }
  local kept = kept_for(message.expires_at)
  local done = call('LLEN', outcomes)
  local chunk = call('LINDEX', recipients, done)
  delivered, dead = tonumber(delivered), tonumber(dead)
  if chunk then
    local found, count = deliver_chunk(message, chunk)
    delivered, dead = delivered + count, dead + #found - count
    call('RPUSH', outcomes, table.concat(found, ' '))
    call('PEXPIRE', outcomes, kept)
    call('HSET', key, 'delivered', int(delivered), 'dead', int(dead))
    bump('messages_delivered', count)
    bump('messages_dead', #found - count)
  end
  if call('LLEN', recipients) > done + 1 then
    -- It made progress, so it is no entry that kills its router: the tries are counted from the beginning.
    call('XCLAIM', P .. stream, 'router', name, 0, entry, 'RETRYCOUNT', 1, 'JUSTID')
    return 'MORE'
  end
  call('HSET', key, 'status', 'delivered')
  for _, name_of in ipairs({ key, recipients, outcomes }) do
    call('PEXPIRE', name_of, kept)
  end
  log_message('message.delivered', id, 'sender_id', sender, 'receiver_id', '', 'recipients', total,
    'delivered', int(delivered), 'dead', int(dead))
  answer_with(caller, stream, entry, '{"recipients":' .. total .. ',"delivered":' .. int(delivered) .. '}')
  return 'DELIVERED'
end

local result = run_batch({
  group = 'router', at = 3, width = 5, handle = deliver, finish = finish_messages,
  stream = function(i)
    return 'in:messages:' .. ARGV[i + 1]
  end,
})
if (bumps.messages_dead or 0) > 0 then
  forget_dead()
end
return result

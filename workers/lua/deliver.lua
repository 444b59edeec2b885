#!lua
-- Delivers direct messages into their receivers' inboxes. The same id twice has one effect.
-- A message that waits for a reply is a request; one that answers another is part of its conversation.
-- include: base entries replies batches messages conversations requests
-- keys: message:{id} hash rw | messages:dead zset rw | in:messages:{lane} stream w
-- ARGV[3]  number of messages (0: only old dead letters are removed), then for each:
--   entry | lane | caller or '' | message_id | digest | sender_id | receiver_id | message_type | ttl_ms
--   | payload, opaque JSON | correlation_id or '' | reply_to or '' | caused_by: the message whose handler sent it, or ''
--   | reply_by_ms: it waits so long for a reply, or '' | failed: 1 for a reply that reports a failure, or ''
--   | traceparent or '' | result: what the coordinator answers itself, opaque JSON, or '' | result_failed: 1 or ''
-- Returns {words}. Words: DELIVERED; DUPLICATE; CONFLICT (other content under this id); EXPIRED, UNKNOWN (no such
--   receiver, or a request of nobody who can get the reply), FULL (its lane has no room), LOOP (its chain of answers is
--   too long), OVER_BUDGET (its conversation has too many messages): dead letters with a reason; GONE (the entry was
--   handled before); ERROR <why> (not consumed)
-- Events in log:messages: message.delivered, message.dead

-- Returns why a message cannot be delivered: a word, a code and a message; nil if it can.
local function refusal_of(message, result)
  local word, code, reason = over_limit(message)
  if word then
    return word, code, reason
  elseif (message.reply_by or result) and not can_be_answered(message.sender, message.from) then
    return 'UNKNOWN', 'agent_not_found', "Agent '" .. message.sender .. "' not found, which is to get the reply"
  elseif result then
    return nil
  end
  local request = message.answers
  message.to_caller = request and request.caller == message.receiver and request.caller or nil
  if message.to_caller and now < message.expires_at then
    return nil -- a client has no inbox
  end
  return undeliverable(message.lane, message.receiver, message.expires_at)
end

local function deliver(i)
  local entry, lane, caller, id, digest, sender, receiver, kind, ttl, payload, correlation, reply_to, caused_by, wait_ms, failed,
    traceparent, result, result_failed = unpack(ARGV, i, i + 17)
  local stream, key = 'in:messages:' .. lane, P .. 'message:' .. id
  if not is_present(stream, entry) then
    return 'GONE'
  end
  local known = call('HGET', key, 'digest')
  if known then
    if known ~= digest then
      answer(caller, stream, entry, 'id_conflict', "message_id '" .. id .. "' was used before with other content")
      return 'CONFLICT'
    end
    answer(caller, stream, entry)
    return 'DUPLICATE'
  end
  local sent_at = entry_ms(entry)
  local message = {
    id = id, kind = kind, payload = payload, sender = sender, receiver = receiver, lane = lane,
    sent_at = sent_at, expires_at = sent_at + tonumber(ttl), correlation_id = correlation, reply_to = reply_to,
    caused_by = caused_by, failed = failed, traceparent = traceparent, from = caller,
    reply_by = wait_ms ~= '' and sent_at + tonumber(wait_ms) or nil,
  }
  result = result ~= '' and result or nil
  local word, code, reason
  if correlation == '' and reply_to == '' and caused_by == '' and wait_ms == '' and failed == '' and traceparent == '' and not result then
    message.is_plain = true
    word, code, reason = undeliverable(lane, receiver, message.expires_at)
  else
    join_conversation(message)
    word, code, reason = refusal_of(message, result)
    if message.reply_by or result then
      message.requested_by = caller_for_answers(sender, caller)
    end
  end
  if word then
    message.request = message.reply_by and 'refused'
    call('ZADD', P .. 'messages:dead', NOW, id)
    bump('messages_dead', 1)
    log_message('message.dead', id, 'sender_id', sender, 'receiver_id', receiver, 'code', code, 'reason', reason)
    answer(caller, stream, entry, code, reason)
  elseif result then
    message.request = message.reply_by and 'answered'
    answer(caller, stream, entry)
  else
    if message.reply_by then
      message.request = 'open'
      await_reply(id, tonumber(wait_ms))
    end
    message.late = note_reply(message) and '1' or nil
    hand_over(message, message.to_caller)
    answer(caller, stream, entry)
  end
  -- The record of a dead letter lives as long as it is in the index, that of a request at least until its wait ends.
  local lives_ms = math.max(KEPT, message.expires_at - now)
  call('HSET', key, unpack(add_place({ 'digest', digest, 'sender_id', sender, 'receiver_id', receiver, 'message_type', kind,
    'priority', lane, 'status', word and 'dead' or 'delivered', 'sent_at', int(sent_at), 'expires_at', int(message.expires_at),
    'reason', reason or '', 'body', payload }, message)))
  if not word and message.request ~= 'open' then
    call('PEXPIRE', key, int(lives_ms))
  end
  index_message(message, lives_ms, CONVERSATION_MOST)
  local request = { id = id, sender = sender, lane = lane, conversation = message.conversation, hops = message.hops,
    traceparent = traceparent, caller = message.requested_by }
  if result and not word then
    answer_request(request, '.answer', result, result_failed)
  elseif word and message.reply_by and not message.requested_by then
    -- A client has the reason already, in the answer to its fact.
    answer_request(request, '.refused', '{"code":"' .. code .. '","message":"' .. reason .. '"}', '1')
  end
  return word or 'DELIVERED'
end

-- Removes dead letters by age and by count, a bounded number at a time. Each record must still be a dead letter: its id
-- may have been used again since.
local function forget_dead()
  local index = P .. 'messages:dead'
  local over = math.max(call('ZCOUNT', index, '-inf', int(now - DEAD_KEPT)), call('ZCARD', index) - DEAD_MOST)
  if over <= 0 then
    return
  end
  local popped = call('ZPOPMIN', index, math.min(over, 1000))
  for i = 1, #popped, 2 do
    local key = P .. 'message:' .. popped[i]
    if redis.pcall('HGET', key, 'status') == 'dead' then
      call('DEL', key)
    end
  end
end

local result = run_batch({
  group = 'router', at = 3, width = 18, handle = deliver,
  stream = function(i)
    return 'in:messages:' .. ARGV[i + 1]
  end,
})
if bumps.messages_dead or tonumber(ARGV[3]) == 0 then
  forget_dead()
end
return result

#!lua
-- Delivers messages into their receivers' inboxes, as their protocols allow. The same id twice has one effect. A message
-- that waits for a reply is a request; one that answers another is part of its conversation.
-- include: base replies batches lanes messages recipients conversations requests
-- keys: message:{id} hash rw | messages:dead zset rw | in:messages:{lane} stream w
-- ARGV[3]  number of messages (0: only old dead letters are removed), then for each:
--   entry | lane | caller or '' | message_id | digest | sender_id | receiver_id | message_type | ttl_ms
--   | payload, opaque JSON | correlation_id or '' | reply_to or '' | protocol: direct, peer_to_peer or hierarchical
--   | receipt: 1 if the answer says who has it | caused_by: the message whose handler sent it, or ''
--   | reply_by_ms: it waits so long for a reply, or '' | failed: 1 for a reply that reports a failure, or ''
--   | traceparent or '' | result: what the coordinator answers itself, opaque JSON, or '' | result_failed: 1 or ''
-- Returns {words}. Words: DELIVERED; DUPLICATE; CONFLICT (other content under this id, or it is reserved); EXPIRED, UNKNOWN (no such
--   receiver, or a request of nobody who can get the reply), LEFT (it has left), FULL (its lane has no room), FORBIDDEN
--   (by the rule of its protocol), LOOP (its chain of answers is too long), OVER_BUDGET (its conversation has too many
--   messages): dead letters with a reason; GONE (the entry was handled before); NOT_HELD (the router does not hold the
--   lane), BEHIND (an older entry of the lane waits), ERROR <why>: not consumed. A receipt has {"count":number of agents
--   that have it,"recipients":[{"agent_id","state","ahead","deaf"}, or {"agent_id","code"}]}
-- Events in log:messages: message.delivered, message.dead

-- Returns why a message that has a place in a conversation, or is a request, cannot be delivered: a word, a code and a
-- message; nil if it can. Then `to_caller` is the client that gets it among its replies.
local function refusal_with_place(message, result)
  local word, code, reason = over_limit(message)
  if word then
    return word, code, reason
  elseif (message.reply_by or result) and not can_be_answered(message.sender, message.from) then
    return 'UNKNOWN', 'agent_not_found', "Agent '" .. message.sender .. "' not found, which is to get the reply"
  end
  local request = request_of(message)
  local to_caller = request and request.caller == message.receiver and request.caller or nil
  if (to_caller or result) and now < message.expires_at then
    -- A client has no inbox, and the coordinator has none.
    message.recipients, message.delivered, message.to_caller = {}, 1, to_caller
    return nil
  end
  return refusal(message)
end

-- Returns why a request cannot have this id; nil if it can.
local function reply_conflict(id)
  local reply_id = reply_id_of(id)
  if call('EXISTS', P .. 'message:' .. reply_id) == 1 then
    return "message_id '" .. reply_id .. "', which the reply would have, was used before; use another id for the request"
  end
end

local function deliver(i)
  local entry, lane, caller, id, digest, sender, receiver, kind, ttl, payload, correlation, reply_to, protocol, receipt, caused_by, wait_ms, failed, traceparent, result, result_failed = unpack(ARGV, i, i + 19)
  local stream, key = 'in:messages:' .. lane, P .. 'message:' .. id
  local displaced = lane_refusal(lane, entry)
  if displaced then
    return displaced
  end
  local known, status, known_code, known_reason = unpack(call('HMGET', key, 'digest', 'status', 'code', 'reason'))
  local conflict = known and known ~= digest and "message_id '" .. id .. "' was used before with other content"
    or not known and (reserved(id, sender, reply_to) or wait_ms ~= '' and reply_conflict(id))
  if conflict then
    answer(caller, stream, entry, 'id_conflict', conflict)
    return 'CONFLICT'
  elseif known then
    if status == 'dead' then
      answer(caller, stream, entry, known_code, known_reason)
    else
      answer(caller, stream, entry)
    end
    return 'DUPLICATE'
  end
  local sent_at = sent_ms(entry)
  local message = {
    id = id, kind = kind, payload = payload, sender = sender, receiver = receiver, lane = lane, sent_at = sent_at,
    expires_at = sent_at + tonumber(ttl), correlation_id = correlation, reply_to = reply_to, protocol = protocol,
    caused_by = caused_by, failed = failed, traceparent = traceparent, from = caller,
    reply_by = wait_ms ~= '' and sent_at + tonumber(wait_ms) or nil,
    has_receipt = receipt == '1',
  }
  result = result ~= '' and result or nil
  local word, code, reason
  if correlation == '' and reply_to == '' and caused_by == '' and wait_ms == '' and failed == '' and traceparent == '' and not result then
    message.is_plain = true
    word, code, reason = refusal(message)
  else
    join_conversation(message)
    message.late = is_late(message) and '1' or nil
    word, code, reason = refusal_with_place(message, result)
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
  else
    if message.to_caller then
      reply_to_client(message, message.to_caller)
    elseif not result then
      put_into_inboxes(message)
    end
    if message.has_receipt then
      answer_with(caller, stream, entry, receipt_json(message))
    else
      answer(caller, stream, entry)
    end
  end
  if not word then
    if message.reply_by then
      message.request = result and 'answered' or 'open'
    end
    if message.request == 'open' then
      await_reply(id, tonumber(wait_ms))
    end
    end_request_of(message)
  end
  note_history(sender, id)
  if word and receiver ~= sender and word ~= 'UNKNOWN' and not message.is_to_all then
    note_history(receiver, id)
  end
  -- The record of a dead letter lives as long as it is in the index, that of a request at least until its wait ends.
  call('HSET', key, unpack(add_place({ 'digest', digest, 'sender_id', sender, 'receiver_id', receiver, 'message_type', kind,
    'priority', lane, 'status', word and 'dead' or 'delivered', 'sent_at', int(sent_at), 'expires_at', int(message.expires_at),
    'reason', reason or '', 'body', payload, 'protocol', protocol, 'inbox_entry', message.inbox_entry or '' }, message)))
  if word then
    call('HSET', key, 'code', code)
  else
    keep_records(message)
    if message.request == 'open' then
      call('PERSIST', key)
    end
  end
  index_message(message, KEPT + math.max(0, message.expires_at - now), CONVERSATION_MOST)
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

local result = run_batch({
  group = 'router', at = 3, width = 20, handle = deliver, finish = finish_messages,
  stream = function(i)
    return 'in:messages:' .. ARGV[i + 1]
  end,
})
if bumps.messages_dead or tonumber(ARGV[3]) == 0 then
  forget_dead()
end
return result

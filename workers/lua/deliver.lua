#!lua
-- Delivers messages into their receivers' inboxes, as their protocols allow. The same id twice has one effect.
-- include: base replies batches lanes messages recipients
-- keys: message:{id} hash rw | messages:dead zset rw | in:messages:{lane} stream w
-- ARGV[3]  number of messages (0: only old dead letters are removed), then for each:
--   entry | lane | caller or '' | message_id | digest | sender_id | receiver_id | message_type | ttl_ms
--   | payload, opaque JSON | correlation_id or '' | reply_to or '' | protocol: direct, peer_to_peer or hierarchical
--   | receipt: 1 if the answer says who has it
-- Returns {words}. Words: DELIVERED; DUPLICATE; CONFLICT (other content under this id); EXPIRED, UNKNOWN (no such
--   receiver), LEFT (it has left), FULL (its lane has no room), FORBIDDEN (by the rule of its protocol): dead letters
--   with a reason; GONE (the entry was handled before); NOT_HELD (the router does not hold the lane), BEHIND (an older
--   entry of the lane waits), ERROR <why>: not consumed. A receipt has {"count":number of agents that have it,
--   "recipients":[{"agent_id","state","ahead","deaf"}, or {"agent_id","code"}]}
-- Events in log:messages: message.delivered, message.dead
local function deliver(i)
  local entry, lane, caller, id, digest, sender, receiver, kind, ttl, payload, correlation, reply_to, protocol, receipt = unpack(ARGV, i, i + 13)
  local stream, key = 'in:messages:' .. lane, P .. 'message:' .. id
  local displaced = lane_refusal(lane, entry)
  if displaced then
    return displaced
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
    id = id, kind = kind, payload = payload, sender = sender, receiver = receiver, lane = lane, sent_at = sent_at,
    expires_at = sent_at + tonumber(ttl), correlation_id = correlation, reply_to = reply_to, protocol = protocol,
    has_receipt = receipt == '1',
  }
  local word, code, reason = refusal(message)
  local status = word and 'dead' or 'delivered'
  if word then
    call('ZADD', P .. 'messages:dead', NOW, id)
    bump('messages_dead', 1)
    log_message('message.dead', id, 'sender_id', sender, 'receiver_id', receiver, 'code', code, 'reason', reason)
    answer(caller, stream, entry, code, reason)
  else
    put_into_inboxes(message)
    if message.has_receipt then
      answer_with(caller, stream, entry, receipt_json(message))
    else
      answer(caller, stream, entry)
    end
  end
  note_history(sender, id)
  if word and receiver ~= sender and word ~= 'UNKNOWN' and not message.is_to_all then
    note_history(receiver, id)
  end
  call('HSET', key, 'digest', digest, 'sender_id', sender, 'receiver_id', receiver, 'message_type', kind,
    'priority', lane, 'status', status, 'sent_at', int(sent_at), 'expires_at', int(message.expires_at),
    'reason', reason or '', 'body', payload, 'protocol', protocol, 'inbox_entry', message.inbox_entry or '')
  if correlation ~= '' or reply_to ~= '' then
    call('HSET', key, 'correlation_id', correlation, 'reply_to', reply_to)
  end
  if word then
    call('HSET', key, 'code', code) -- the record of a dead letter lives as long as it is in the index
  else
    keep_records(message)
  end
  return word or 'DELIVERED'
end

local result = run_batch({
  group = 'router', at = 3, width = 14, handle = deliver, finish = finish_messages,
  stream = function(i)
    return 'in:messages:' .. ARGV[i + 1]
  end,
})
if bumps.messages_dead or tonumber(ARGV[3]) == 0 then
  forget_dead()
end
return result

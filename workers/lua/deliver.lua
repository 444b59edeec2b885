#!lua
-- Delivers direct messages into their receivers' inboxes. The same id twice has one effect.
-- include: base replies batches lanes messages
-- keys: message:{id} hash rw | messages:dead zset rw | in:messages:{lane} stream w
-- ARGV[3]  number of messages (0: only old dead letters are removed), then for each:
--   entry | lane | caller or '' | message_id | digest | sender_id | receiver_id | message_type | ttl_ms
--   | payload, opaque JSON | correlation_id or '' | reply_to or ''
-- Returns {words}. Words: DELIVERED; DUPLICATE; CONFLICT (other content under this id); EXPIRED, UNKNOWN (no such
--   receiver), FULL (its lane has no room): dead letters with a reason; GONE (the entry was handled before); NOT_HELD (the
--   router does not hold the lane), BEHIND (an older entry of the lane waits), ERROR <why>: not consumed
-- Events in log:messages: message.delivered, message.dead
local function deliver(i)
  local entry, lane, caller, id, digest, sender, receiver, kind, ttl, payload, correlation, reply_to = unpack(ARGV, i, i + 11)
  local stream, key = 'in:messages:' .. lane, P .. 'message:' .. id
  local refusal = lane_refusal(lane, entry)
  if refusal then
    return refusal
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
  local expires_at = sent_at + tonumber(ttl)
  local word, code, reason = undeliverable(lane, receiver, expires_at)
  local status = word and 'dead' or 'delivered'
  if word then
    call('ZADD', P .. 'messages:dead', NOW, id)
    bump('messages_dead', 1)
    log_message('message.dead', id, 'sender_id', sender, 'receiver_id', receiver, 'code', code, 'reason', reason)
    answer(caller, stream, entry, code, reason)
  else
    push_to_inbox({
      id = id, kind = kind, payload = payload, sender = sender, receiver = receiver, lane = lane, sent_at = sent_at,
      expires_at = expires_at, correlation_id = correlation, reply_to = reply_to,
    })
    answer(caller, stream, entry)
  end
  call('HSET', key, 'digest', digest, 'sender_id', sender, 'receiver_id', receiver, 'message_type', kind,
    'priority', lane, 'status', status, 'sent_at', int(sent_at), 'expires_at', int(expires_at),
    'reason', reason or '', 'body', payload)
  if word then
    -- A replay needs these. The record of a dead letter lives as long as it is in the index.
    call('HSET', key, 'correlation_id', correlation, 'reply_to', reply_to)
  else
    call('PEXPIRE', key, int(math.max(KEPT, expires_at - now)))
  end
  return word or 'DELIVERED'
end

local result = run_batch({
  group = 'router', at = 3, width = 12, handle = deliver,
  stream = function(i)
    return 'in:messages:' .. ARGV[i + 1]
  end,
})
if bumps.messages_dead or tonumber(ARGV[3]) == 0 then
  forget_dead()
end
return result

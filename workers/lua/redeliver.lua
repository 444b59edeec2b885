#!lua
-- Delivers dead messages again on an operator's request, as if they were sent now.
-- include: base entries replies batches messages recipients audit
-- keys: message:{id} hash rw | messages:dead zset w | in:control:{kind} stream w
-- ARGV[3]  number of requests, then for each:
--   entry | caller or '' | message_id | ttl_ms
-- Returns {words}. Words: DELIVERED; NOT_FOUND; NOT_DEAD; EXPIRED, UNKNOWN, LEFT, FULL, FORBIDDEN (it stays a dead
--   letter, for this reason); GONE (the entry was handled before); ERROR <why> (not consumed)
-- Events in log:messages: message.delivered, message.dead
local STREAM = 'in:control:router'

local function redeliver(i)
  local entry, caller, id, ttl = unpack(ARGV, i, i + 3)
  if not is_present(STREAM, entry) then
    return 'GONE'
  end
  local key = P .. 'message:' .. id
  local values = call('HMGET', key, 'status', 'sender_id', 'receiver_id', 'message_type', 'priority', 'body',
    'correlation_id', 'reply_to', 'protocol', 'reply_by', 'failed', 'hops', 'traceparent')
  local status, sender, receiver, kind, lane, payload, correlation, reply_to, protocol, reply_by, failed, hops, traceparent = unpack(values, 1, 13)
  if not status then
    answer(caller, STREAM, entry, 'message_not_found', "Message '" .. id .. "' not found")
    return 'NOT_FOUND'
  elseif status ~= 'dead' then
    answer(caller, STREAM, entry, 'message_not_dead', "message '" .. id .. "' is " .. status .. '; only a dead one can be replayed')
    return 'NOT_DEAD'
  end
  local sent_at = sent_ms(entry)
  local message = {
    id = id, kind = kind, payload = payload, sender = sender, receiver = receiver, lane = lane, sent_at = sent_at,
    expires_at = sent_at + tonumber(ttl), correlation_id = correlation or '', reply_to = reply_to or '', protocol = protocol or 'direct',
    reply_by = reply_by, failed = failed, hops = hops, traceparent = traceparent,
  }
  local word, code, reason = refusal(message)
  if word then
    call('HSET', key, 'reason', reason, 'code', code)
    log_message('message.dead', id, 'sender_id', sender, 'receiver_id', receiver, 'code', code, 'reason', reason)
    answer(caller, STREAM, entry, code, reason)
    return word
  end
  put_into_inboxes(message)
  call('ZREM', P .. 'messages:dead', id)
  call('HSET', key, 'status', 'delivered', 'sent_at', int(sent_at), 'expires_at', int(message.expires_at), 'reason', '',
    'code', '', 'inbox_entry', message.inbox_entry or '')
  keep_records(message)
  if call('HGET', key, 'request') == 'open' then
    call('PERSIST', key) -- it expired unread, and its sender still waits for a reply
  end
  bump('messages_replayed', 1)
  answer(caller, STREAM, entry)
  return 'DELIVERED'
end

return run_batch({ group = 'router', stream = STREAM, at = 3, width = 4, handle = redeliver, audit = audit, finish = finish_messages })

#!lua
-- Records a broadcast with the list of its recipients, before it is delivered to the first of them. A router that takes
-- over continues with this list, so nobody is left out or gets it twice.
-- include: base replies batches lanes messages conversations
-- keys: message:{id} hash rw | recipients:{id} list w | in:messages:{lane} stream w
-- ARGV[3]  number of broadcasts, then for each:
--   entry | lane | caller or '' | message_id | digest | sender_id | message_type | ttl_ms | payload, opaque JSON
--   | correlation_id or '' | caused_by: the message whose handler sent it, or '' | traceparent or '' | number of recipients
--   | recipients in a chunk | number n of chunks, n times: ids, spaces between
-- Returns {words}. Words: MORE (recorded, now or before: it is to be delivered, and not consumed); DUPLICATE (delivered
--   before); CONFLICT (other content under this id, or it is reserved); EXPIRED, LOOP (its chain of answers is too long), OVER_BUDGET (its
--   conversation has too many messages): recorded as dead; GONE (the entry was handled before); NOT_HELD (the router does
--   not hold the lane), BEHIND (an older entry of the lane waits), ERROR <why>: not consumed
-- Events in log:messages: message.broadcast, message.dead
local WIDTH = 15

-- Returns why a broadcast is sent to nobody: a word, a code and a message; nil if it is sent.
local function refusal(message)
  if now >= message.expires_at then
    return 'EXPIRED', 'message_expired', 'its time to live passed before its recipients were chosen'
  elseif message.is_plain then
    return nil
  end
  join_conversation(message)
  return over_limit(message)
end

local function freeze(i, last)
  local entry, lane, caller, id, digest, sender, kind, ttl, payload, correlation, caused_by, traceparent, count, chunk =
    unpack(ARGV, i, i + 13)
  local stream, key, list = 'in:messages:' .. lane, P .. 'message:' .. id, P .. 'recipients:' .. id
  local displaced = lane_refusal(lane, entry)
  if displaced then
    return displaced
  end
  local known, status, total, delivered, known_code, known_reason =
    unpack(call('HMGET', key, 'digest', 'status', 'recipients', 'delivered', 'code', 'reason'))
  local conflict = known and known ~= digest and "message_id '" .. id .. "' was used before with other content"
    or not known and reserved(id, sender, '')
  if conflict then
    answer(caller, stream, entry, 'id_conflict', conflict)
    return 'CONFLICT'
  elseif known and status == 'delivering' then
    call('HSET', key, 'entry', entry)
    return 'MORE'
  elseif known and status == 'dead' then
    answer(caller, stream, entry, known_code, known_reason)
    return 'DUPLICATE'
  elseif known then
    answer_with(caller, stream, entry, '{"recipients":' .. (total or 0) .. ',"delivered":' .. (delivered or 0) .. '}')
    return 'DUPLICATE'
  end
  local sent_at = sent_ms(entry)
  local message = {
    id = id, sender = sender, receiver = '(broadcast)', expires_at = sent_at + tonumber(ttl), correlation_id = correlation,
    reply_to = '', caused_by = caused_by, traceparent = traceparent,
    is_plain = correlation == '' and caused_by == '' and traceparent == '',
  }
  local word, code, reason = refusal(message)
  local kept = kept_for(message.expires_at)
  if last >= i + WIDTH and not word then
    call('DEL', list)
    for first = i + WIDTH, last, 1000 do
      call('RPUSH', list, unpack(ARGV, first, math.min(first + 999, last)))
    end
    call('PEXPIRE', list, kept)
  end
  call('HSET', key, unpack(add_place({ 'digest', digest, 'sender_id', sender, 'receiver_id', '', 'message_type', kind,
    'protocol', 'broadcast', 'priority', lane, 'status', word and 'dead' or 'delivering', 'sent_at', int(sent_at),
    'expires_at', int(message.expires_at), 'reason', reason or '', 'code', code or '', 'body', payload, 'entry', entry,
    'recipients', word and 0 or count, 'chunk', chunk, 'delivered', 0, 'dead', 0 }, message)))
  call('PEXPIRE', key, kept)
  note_history(sender, id)
  index_message(message, kept, CONVERSATION_MOST)
  if word then
    bump('messages_dead', 1)
    log_message('message.dead', id, 'sender_id', sender, 'receiver_id', '', 'code', code, 'reason', reason)
    answer(caller, stream, entry, code, reason)
    return word
  end
  log_message('message.broadcast', id, 'sender_id', sender, 'recipients', count)
  return 'MORE'
end

return run_batch({
  group = 'router', at = 3, handle = freeze, finish = finish_messages,
  width = function(first)
    return WIDTH + tonumber(ARGV[first + WIDTH - 1])
  end,
  stream = function(i)
    return 'in:messages:' .. ARGV[i + 1]
  end,
})

#!lua
-- Records a broadcast with the list of its recipients, before it is delivered to the first of them. A router that takes
-- over continues with this list, so nobody is left out or gets it twice.
-- include: base replies batches lanes messages
-- keys: message:{id} hash rw | recipients:{id} list w | in:messages:{lane} stream w
-- ARGV[3]  number of broadcasts, then for each:
--   entry | lane | caller or '' | message_id | digest | sender_id | message_type | ttl_ms | payload, opaque JSON
--   | correlation_id or '' | number of recipients | recipients in a chunk | number n of chunks, n times: ids, spaces between
-- Returns {words}. Words: MORE (recorded, now or before: it is to be delivered, and not consumed); DUPLICATE (delivered
--   before); CONFLICT (other content under this id); EXPIRED; GONE (the entry was handled before); NOT_HELD (the router does
--   not hold the lane), BEHIND (an older entry of the lane waits), ERROR <why>: not consumed
-- Events in log:messages: message.broadcast, message.dead
local WIDTH = 13

local function freeze(i, last)
  local entry, lane, caller, id, digest, sender, kind, ttl, payload, correlation, count, chunk = unpack(ARGV, i, i + 11)
  local stream, key, list = 'in:messages:' .. lane, P .. 'message:' .. id, P .. 'recipients:' .. id
  local refusal = lane_refusal(lane, entry)
  if refusal then
    return refusal
  end
  local known, status, total, delivered = unpack(call('HMGET', key, 'digest', 'status', 'recipients', 'delivered'))
  if known and known ~= digest then
    answer(caller, stream, entry, 'id_conflict', "message_id '" .. id .. "' was used before with other content")
    return 'CONFLICT'
  elseif known and status == 'delivering' then
    call('HSET', key, 'entry', entry)
    return 'MORE'
  elseif known then
    answer_with(caller, stream, entry, '{"recipients":' .. (total or 0) .. ',"delivered":' .. (delivered or 0) .. '}')
    return 'DUPLICATE'
  end
  local sent_at = entry_ms(entry)
  local expires_at = sent_at + tonumber(ttl)
  local is_expired = now >= expires_at
  local kept = kept_for(expires_at)
  local reason = is_expired and 'its time to live passed before its recipients were chosen' or ''
  if last >= i + WIDTH and not is_expired then
    call('DEL', list)
    for first = i + WIDTH, last, 1000 do
      call('RPUSH', list, unpack(ARGV, first, math.min(first + 999, last)))
    end
    call('PEXPIRE', list, kept)
  end
  call('HSET', key, 'digest', digest, 'sender_id', sender, 'receiver_id', '', 'message_type', kind, 'priority', lane,
    'status', is_expired and 'dead' or 'delivering', 'sent_at', int(sent_at), 'expires_at', int(expires_at),
    'reason', reason, 'body', payload, 'correlation_id', correlation, 'entry', entry,
    'code', is_expired and 'message_expired' or '', 'recipients', is_expired and 0 or count, 'chunk', chunk,
    'delivered', 0, 'dead', 0)
  call('PEXPIRE', key, kept)
  note_history(sender, id)
  if is_expired then
    bump('messages_dead', 1)
    log_message('message.dead', id, 'sender_id', sender, 'receiver_id', '', 'code', 'message_expired', 'reason', reason)
    answer(caller, stream, entry, 'message_expired', reason)
    return 'EXPIRED'
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

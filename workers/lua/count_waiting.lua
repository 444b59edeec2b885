#!lua flags=allow-oom
-- Counts the waiting tasks by reason, and records the numbers for readers such as metrics. One distributor at a time
-- does this: the one that did it last, until it has been silent for a while.
-- include: base
-- keys: counters hash r | queue:{pool} zset r | waiting hash rw
-- ARGV[3]  the process that counts
-- ARGV[4]  1: this is the last call of a count, which records it; 0: more calls follow, or it only goes on counting
-- ARGV[5]  the priorities, spaces between
-- ARGV[6]  number of reasons, then for each:
--   reason | tasks that earlier calls of this count found | number n of queues, n times: queue
-- LIMITS.silence_ms  ms of silence after which another process may count
-- LIMITS.kept_ms  ms that the numbers are kept if no process counts any more
-- Returns {word, number}: OK, and the tasks for each reason, those of earlier calls included; OTHER, and the ms until
--   this process may count: another one does
local by, silence = ARGV[3], tonumber(LIMITS.silence_ms)
local found = call('HMGET', P .. 'waiting', 'by', 'seen_at')
local seen_at = tonumber(found[2] or 0)
-- A time ahead of the clock was written before the clock was set back.
if found[1] and found[1] ~= by and seen_at <= now and now < seen_at + silence then
  return { 'OTHER', int(seen_at + silence - now) }
end

local counts, fields, at = {}, {}, 7
for n = 1, tonumber(ARGV[6]) do
  local count, queues = tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
  for i = at + 3, at + 2 + queues do
    count = count + call('ZCARD', P .. 'queue:' .. ARGV[i])
  end
  counts[n] = int(count)
  fields[2 * n - 1], fields[2 * n] = ARGV[at], counts[n]
  at = at + 3 + queues
end

if ARGV[4] == '1' then
  local queued, scheduled = 0, 0
  for priority in string.gmatch(ARGV[5], '%S+') do
    local gauges = call('HMGET', P .. 'counters', 'queued:' .. priority, 'scheduled:' .. priority)
    queued, scheduled = queued + tonumber(gauges[1] or 0), scheduled + tonumber(gauges[2] or 0)
  end
  call('DEL', P .. 'waiting')
  call('HSET', P .. 'waiting', 'counted_at', NOW, 'queued', int(queued), 'scheduled', int(scheduled), unpack(fields))
end
call('HSET', P .. 'waiting', 'by', by, 'seen_at', NOW)
call('PEXPIRE', P .. 'waiting', LIMITS.kept_ms)
return { 'OK', unpack(counts) }

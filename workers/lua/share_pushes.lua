#!lua flags=allow-oom
-- Shares the shards of the agents to which tasks are pushed evenly among the push workers: a worker renews its shards,
-- takes those that nobody holds, and learns which of its shards it should give up.
-- include: base
-- keys: pushes hash rw | pushes:workers zset rw
-- ARGV[3]  the worker: its name, #, and what tells its process from others of the same name
-- ARGV[4]  1 if it leaves: it gives up all shards; else 0
-- ARGV[5]  number of shards that it gives up, then each
-- LIMITS.shards  number of shards
-- LIMITS.push_lease_ms  ms without a call, on the clock of pushes, after which a worker has lost its shards
-- LIMITS.push_step_ms  ms that the clock of pushes advances at most between two calls
-- Returns {held, excess}: the shards that it holds, and how many of them it should give up
local worker, leaves, shards = ARGV[3], ARGV[4] == '1', tonumber(LIMITS.shards)

-- Advances the clock of pushes with the server's time. It stands still while no worker calls, so a worker does not lose
-- its shards because Redis was unavailable.
local function tick()
  local stored = call('HMGET', P .. 'pushes', 'observed', 'ticked_at')
  local clock, at = tonumber(stored[1] or nil), tonumber(stored[2] or nil)
  clock = clock and at and clock + math.max(0, math.min(tonumber(LIMITS.push_step_ms), now - at)) or 0
  call('HSET', P .. 'pushes', 'observed', int(clock), 'ticked_at', NOW)
  return clock
end

local clock = tick()
if leaves then
  call('ZREM', P .. 'pushes:workers', worker)
else
  call('ZADD', P .. 'pushes:workers', int(clock), worker)
end
call('ZREMRANGEBYSCORE', P .. 'pushes:workers', '-inf', int(clock - tonumber(LIMITS.push_lease_ms)))

local counts, workers = {}, call('ZRANGE', P .. 'pushes:workers', 0, -1)
for _, one in ipairs(workers) do
  counts[one] = 0
end
local gives = {}
for i = 6, 5 + tonumber(ARGV[5]) do
  gives[ARGV[i]] = true
end
local names, held, free, given = {}, {}, {}, {}
for i = 1, shards do
  names[i] = int(i - 1)
end
for i, holder in ipairs(call('HMGET', P .. 'pushes', unpack(names))) do
  if holder == worker and (leaves or gives[names[i]]) then
    given[#given + 1] = names[i]
  elseif holder and counts[holder] then
    counts[holder] = counts[holder] + 1
    if holder == worker then
      held[#held + 1] = names[i]
    end
  else
    free[#free + 1] = names[i]
  end
end
if #given > 0 then
  call('HDEL', P .. 'pushes', unpack(given))
end
if leaves then
  return { {}, 0 }
end
local least, most = math.floor(shards / #workers), math.ceil(shards / #workers)
local others_lack = false
for one, count in pairs(counts) do
  others_lack = others_lack or (one ~= worker and count < least)
end
for _, shard in ipairs(free) do
  if #held < least or (#held < most and not others_lack) then
    held[#held + 1] = shard
    call('HSET', P .. 'pushes', shard, worker)
  end
end
local excess = 0
if #free == 0 and #given == 0 and #held > least then
  excess = math.max(#held - most, others_lack and 1 or 0)
end
return { held, excess }

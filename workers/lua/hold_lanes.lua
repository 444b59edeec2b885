#!lua flags=allow-oom
-- Renews the leases of a router, and shares the lanes of messages evenly among the routers: a router takes lanes that
-- nobody holds, and learns which of its lanes it should give up.
-- include: base capped batches
-- keys: lanes hash rw | lanes:routers zset rw | in:messages:{lane} stream r | log:control stream w
-- ARGV[3]  the router: its name, #, and what tells its process from others of the same name
-- ARGV[4]  started (its first call: it takes the lanes of an earlier process of its name at once), leaves (it gives up all
--   lanes), or empty
-- ARGV[5]  number of lanes that it gives up, then each
-- LIMITS.lane_lease_ms  ms without a call, on the clock of lanes, after which a router has lost its lanes
-- LIMITS.lane_step_ms  ms that the clock of lanes advances at most between two calls
-- Returns {leases, excess, behind}: lane and lease in turn of each lane that it holds; the lanes that it should give up;
--   the lanes of which another router has read entries that were not handled
-- Events in log:control: lane.taken, lane.left
local LANES = { 'critical', 'high', 'normal', 'low' }
local router, mode = ARGV[3], ARGV[4]
local name = string.match(router, '^[^#]+')

-- Advances the clock of lanes with the server's time. It stands still while no router calls, so a router does not lose
-- its lanes because Redis or all routers were unavailable.
local function tick()
  local stored = call('HMGET', P .. 'lanes', 'observed', 'ticked_at')
  local clock, at = tonumber(stored[1] or nil), tonumber(stored[2] or nil)
  if clock and at then
    clock = clock + math.max(0, math.min(tonumber(LIMITS.lane_step_ms), now - at))
  else
    call('DEL', P .. 'lanes:routers')
    clock = 0
  end
  call('HSET', P .. 'lanes', 'observed', int(clock), 'ticked_at', NOW)
  return clock
end

local clock = tick()
call('ZADD', P .. 'lanes:routers', int(clock), router)
call('ZREMRANGEBYSCORE', P .. 'lanes:routers', '-inf', int(clock - tonumber(LIMITS.lane_lease_ms)))

-- The epoch of each lane, which rises with each new holder, and its holder; nil: nobody holds it.
local epochs, holders = {}, {}
local function set_holder(lane, holder)
  epochs[lane] = epochs[lane] + (holder and 1 or 0)
  holders[lane] = holder
  call('HSET', P .. 'lanes', lane, int(epochs[lane]) .. '/' .. (holder or ''))
  log('log:control', 'type', holder and 'lane.taken' or 'lane.left', 'lane', lane, 'epoch', int(epochs[lane]), 'router', name)
end

for i, stored in ipairs(call('HMGET', P .. 'lanes', unpack(LANES))) do
  local epoch, holder = string.match(stored or '', '^(%d+)/(.+)$')
  epochs[LANES[i]] = tonumber(epoch or string.match(stored or '', '^%d+') or 0)
  holders[LANES[i]] = holder
end

local gives = {}
for i = 6, 5 + tonumber(ARGV[5]) do
  gives[ARGV[i]] = true
end
for _, lane in ipairs(LANES) do
  local holder = holders[lane]
  local is_predecessor = mode == 'started' and holder and holder ~= router and string.match(holder, '^[^#]+') == name
  if is_predecessor then
    call('ZREM', P .. 'lanes:routers', holder)
    set_holder(lane, router)
  elseif holder == router and (mode == 'leaves' or gives[lane]) then
    set_holder(lane, nil)
  end
end
if mode == 'leaves' then
  call('ZREM', P .. 'lanes:routers', router)
  finish()
  return { {}, {}, {} }
end

-- How many lanes each router holds. A router that does not call any more has lost its lanes.
local routers = call('ZRANGE', P .. 'lanes:routers', 0, -1)
local counts = {}
for _, id in ipairs(routers) do
  counts[id] = 0
end
local free = {}
for _, lane in ipairs(LANES) do
  local holder = holders[lane]
  if holder and counts[holder] then
    counts[holder] = counts[holder] + 1
  else
    free[#free + 1] = lane
  end
end
local least, most = math.floor(#LANES / #routers), math.ceil(#LANES / #routers)
local function others_lack_lanes()
  for id, count in pairs(counts) do
    if id ~= router and count < least then
      return true
    end
  end
  return false
end

-- A router that has just given up lanes leaves them to the others.
if tonumber(ARGV[5]) == 0 then
  for _, lane in ipairs(free) do
    if counts[router] < least or (counts[router] < most and not others_lack_lanes()) then
      set_holder(lane, router)
      counts[router] = counts[router] + 1
    end
  end
end
local surplus = 0
if #free == 0 and counts[router] > least then
  surplus = math.max(counts[router] - most, others_lack_lanes() and 1 or 0)
end

local leases, excess, behind = {}, {}, {}
for i = #LANES, 1, -1 do
  local lane = LANES[i]
  if holders[lane] == router then
    leases[#leases + 1] = lane
    leases[#leases + 1] = int(epochs[lane]) .. '/' .. router
    if #excess < surplus then
      excess[#excess + 1] = lane
    end
    local pending = redis.pcall('XPENDING', P .. 'in:messages:' .. lane, 'router', '-', '+', 1)[1]
    if pending and pending[2] ~= name then
      behind[#behind + 1] = lane
    end
  end
end
finish()
return { leases, excess, behind }

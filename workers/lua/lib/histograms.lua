-- Histograms of durations: how many observations each bucket holds, and their sum. They add up over all workers.
-- include: base
-- keys: histograms hash w

-- ms, the upper bound of each bucket but the last; the same as in coord/models/statistics.py.
local BOUNDS = { 1, 2, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000, 30000, 60000, 300000, 1800000, 3600000 }
local ABOVE_FIRST_HALF, SECOND_HALF = 500, 10

-- Adds an observation, in ms; nil: it is not known, and not counted. A batch gathers its observations: its cost is a
-- command for each bucket that it touches, not for each task.
local observed = {}
local function observe(name, ms)
  if not ms then
    return
  end
  local buckets = observed[name]
  if not buckets then
    buckets = { sum = 0 }
    observed[name] = buckets
  end
  ms = ms > 0 and ms or 0 -- a clock may have been set back
  local n = ms > ABOVE_FIRST_HALF and SECOND_HALF or 1
  while BOUNDS[n] and ms > BOUNDS[n] do
    n = n + 1
  end
  buckets[n], buckets.sum = (buckets[n] or 0) + 1, buckets.sum + ms
end

-- Writes the observations. Like the log, they report what has been done: a failed write undoes nothing.
local function write_histograms()
  for name, buckets in pairs(observed) do
    for n, count in pairs(buckets) do
      local field = n == 'sum' and 'sum' or BOUNDS[n] or 'inf'
      redis.pcall('HINCRBY', P .. 'histograms', name .. ':' .. field, int(count))
    end
  end
end

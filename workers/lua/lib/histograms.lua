-- Histograms of durations: how many observations each bucket holds, and their sum. They add up over all workers.
-- include: base
-- keys: histograms hash w

-- ms, the upper bound of each bucket but the last; the same as in coord/models/statistics.py.
local BOUNDS = { 1, 2, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000, 30000, 60000, 300000, 1800000, 3600000 }

-- ms, a year.
local MOST_MS = 31536000000

-- Adds observations, in ms; nil or false: the time is not known, and not counted. A batch gathers them by their time, of
-- which it has few different ones, and finds the buckets at its end: its cost is a command for each bucket that it
-- touches, not for each task.
local observed = {}
-- Returns the observations of a histogram: time in ms -> how many.
local function observations(name)
  local counts = observed[name]
  if not counts then
    counts = {}
    observed[name] = counts
  end
  return counts
end

local function observe(name, ms, count)
  if ms then
    local counts = observations(name)
    counts[ms] = (counts[ms] or 0) + (count or 1)
  end
end

-- Writes the observations. Like the log, they report what has been done: a failed write undoes nothing.
local function write_histograms()
  for name, counts in pairs(observed) do
    local fields, sum = {}, nil
    for ms, count in pairs(counts) do
      ms = math.max(0, math.min(ms, MOST_MS)) -- a clock may have been set back, and an agent may say anything
      sum = (sum or 0) + ms * count
      local n = 1
      while BOUNDS[n] and ms > BOUNDS[n] do
        n = n + 1
      end
      local field = BOUNDS[n] or 'inf'
      fields[field] = (fields[field] or 0) + count
    end
    fields.sum = sum
    for field, by in pairs(fields) do
      redis.pcall('HINCRBY', P .. 'histograms', name .. ':' .. field, int(by))
    end
  end
end

-- Decides all limits of a request in one call. KEYS: one counter a check, all in
-- one slot. ARGV[1]: op, clock, lease and the time of the decision to refund, then
-- the checks, packed as redisstore/pack.go does. Ops: 1 take, 2 refund, 3 charge,
-- 4 restore. The reply of take: allowed, now, and per check wait (0: fits, -1:
-- never), remaining, next, reset. All times are microseconds.
--
-- A counter is packed doubles. Window: base, then (at, sum) pairs, sum running on
-- from base; concurrency: the soonest end, then (end, lease) pairs; GCRA: the
-- theoretical arrival time.
local unpack, pack, sub, call = struct.unpack, struct.pack, string.sub, redis.call
local max, min, floor, ceil = math.max, math.min, math.floor, math.ceil
local op, now, lease, at0, p = unpack('>Bddd', ARGV[1])
local virtual = now > 0
if not virtual then
  local t = call('TIME')
  now = t[1] * 1000000 + t[2]
end
local values = call('MGET', _G.unpack(KEYS))
local W, G, C = 0, 3, 4 -- families, as ratelimit numbers them

-- load makes a counter ready: what is over is dropped, and a clock that was set
-- back does not make anybody wait longer than the limit says.
local function load(c, v)
  -- What is no counter of ours counts as none, lest one bad key stop all others.
  if v and (c.family == G and #v ~= 8 or c.family ~= G and (#v < 8 or (#v - 8) % 16 ~= 0)) then v = nil end
  if c.family == G then
    c.level = v and unpack('>d', v) or 0
    local most = now + c.emission * c.burst
    if c.level > most then c.level, c.mended = most, true end
    return
  end
  v = v or ''
  c.base, c.first, c.n = 0, 9, floor(max(#v - 8, 0) / 16)
  if c.n == 0 then c.v, c.last, c.head, c.tail = pack('>d', 0), 0, 0, 0 return end
  c.v, c.base = v, unpack('>d', v)
  if c.family == C then
    if c.base <= now or c.base > now + c.window then
      local kept, soonest = {}, now + c.window
      for i = 0, c.n - 1 do
        local fin, id = unpack('>dd', v, 9 + 16 * i)
        if fin > now + c.window then fin, c.mended = now + c.window, true end
        if fin > now then
          kept[#kept + 1] = pack('>dd', fin, id)
          soonest = min(soonest, fin)
        end
      end
      c.v, c.n = pack('>d', soonest) .. table.concat(kept), #kept
    end
    return
  end
  c.tail, c.last = unpack('>dd', v, #v - 15)
  -- A unit counts from the end of its slice, also if the limit had slices earlier.
  if c.tail > now + c.window / 60 + 1 then
    local back, shifted = c.tail - now, {}
    for i = 0, c.n - 1 do
      local at, sum = unpack('>dd', v, 9 + 16 * i)
      shifted[i + 1] = pack('>dd', at - back, sum)
    end
    c.v, c.tail, c.mended = sub(v, 1, 8) .. table.concat(shifted), now, true
  end
  while c.n > 0 do
    local at, sum = unpack('>dd', c.v, c.first)
    c.head = at
    if at + c.window > now and sum > c.base then break end
    c.base, c.first, c.n = max(c.base, sum), c.first + 16, c.n - 1
  end
  if c.n == 0 then c.v, c.base, c.last, c.first = pack('>d', 0), 0, 0, 9 end
end

local function used(c)
  if c.family == G then return ceil(max(c.level - now, 0) / c.emission) end
  if c.family == C then return c.n end
  return c.last - c.base
end

local function capacity(c) if c.family == G then return c.burst end return c.limit end

local function ends(c)
  local soonest, last = math.huge, 0
  for i = 0, c.n - 1 do
    local fin = unpack('>d', c.v, 9 + 16 * i)
    soonest, last = min(soonest, fin), max(last, fin)
  end
  return soonest, last
end

local function wait(c)
  if c.cost > capacity(c) then return -1 end
  if c.family == G then
    return max(max(c.level, now) + c.emission * c.cost - now - c.emission * c.burst, 0)
  end
  local over = used(c) + c.cost - c.limit
  if over <= 0 or c.cost == 0 then return 0 end
  if c.family == C then return (ends(c)) - now end
  local i = c.first
  while true do
    local at, sum = unpack('>dd', c.v, i)
    if sum - c.base >= over then return at + c.window - now end
    i = i + 16
  end
end

local function stamp(c, at, units)
  c.last = c.last + units
  local tailed = c.n > 0 and c.tail >= at
  if tailed then at = c.tail else c.n = c.n + 1 end
  c.v = sub(c.v, c.first, tailed and -17 or -1) .. pack('>dd', at, c.last)
  if c.n == 1 then c.head = at end
  c.v, c.first, c.tail = pack('>d', c.base) .. c.v, 9, at
end

local function counts(c)
  if c.grain > 0 then return now - now % c.grain + c.grain end
  return now
end

local function charge(c, cost)
  if c.family == G then
    c.level = max(c.level, now) + c.emission * cost
  elseif c.family == C then
    local soonest = c.n > 0 and unpack('>d', c.v) or math.huge
    c.v = pack('>d', min(soonest, now + c.window)) .. sub(c.v, 9) .. pack('>dd', now + c.window, lease)
    c.n = c.n + 1
  else
    stamp(c, counts(c), cost)
  end
end

local function refund(c)
  if c.family == G then
    if now - at0 < c.emission * c.burst then
      c.level = max(c.level - c.emission * min(c.cost, c.burst), 0)
    end
  elseif now - at0 >= c.window then
    return
  elseif c.family == C then
    local kept = {}
    for i = 0, c.n - 1 do
      local pair = sub(c.v, 9 + 16 * i, 24 + 16 * i)
      local _, id = unpack('>dd', pair)
      if id ~= lease then kept[#kept + 1] = pair end
    end
    c.v, c.n = sub(c.v, 1, 8) .. table.concat(kept), #kept
  else
    c.base = min(c.base + c.cost, c.last)
    while c.n > 0 do
      local _, sum = unpack('>dd', c.v, c.first)
      if sum > c.base then break end
      c.first, c.n = c.first + 16, c.n - 1
    end
    c.v, c.first = pack('>d', c.base) .. sub(c.v, c.first), 9
  end
end

local function restore(c, least, reset, add)
  if c.family == C then return end
  if c.family == G then
    if least > 0 and reset > 0 then c.level = max(c.level, now + min(reset, c.emission * c.burst)) end
  elseif reset > 0 and min(least, c.limit) > used(c) then
    stamp(c, min(now + reset - c.window, counts(c)), min(least, c.limit) - used(c))
  end
  add = min(add, capacity(c) - used(c))
  if add > 0 then charge(c, add) end
end

local function report(c)
  local left = max(capacity(c) - used(c), 0)
  if c.family == G then
    local ahead = c.level - now
    if ahead <= 0 then return left, 0, 0 end
    return left, (ahead - 1) % c.emission + 1, ahead
  end
  if c.n == 0 then return left, 0, 0 end
  if c.family == C then
    local soonest, last = ends(c)
    return left, soonest - now, last - now
  end
  return left, c.head + c.window - now, c.tail + c.window - now
end

local function save(key, c)
  local v, fin = c.v, 0
  if c.family == G then v, fin = pack('>d', c.level), c.level
  elseif c.n > 0 then
    if c.family == C then local _, last = ends(c) fin = last else fin = c.tail + c.window end
  end
  if c.family == W and c.n > 0 and c.first > 9 then v = pack('>d', c.base) .. sub(v, c.first) end
  if fin <= now then call('DEL', key) return end
  call('SET', key, v, 'PX', virtual and 3600000 or ceil((fin - now) / 1000) + 10)
end

local checks, allowed = {}, 1
for i = 1, #KEYS do
  local c, shadow = {}
  c.family, shadow, c.cost, c.limit, c.window, c.grain, c.emission, c.burst, p = unpack('>BBdddddd', ARGV[1], p)
  load(c, values[i])
  if op == 1 then
    c.wait = wait(c)
    if c.wait ~= 0 and shadow == 0 then allowed = 0 end
  elseif op == 2 then
    refund(c)
  elseif op == 3 then
    local cost = min(c.cost, capacity(c) - used(c))
    if cost > 0 and c.family ~= C then charge(c, cost) end
  else
    local least, reset, add
    least, reset, add, p = unpack('>ddd', ARGV[1], p)
    restore(c, least, reset, add)
  end
  if op ~= 1 then save(KEYS[i], c) end
  checks[i] = c
end
if op ~= 1 then return 1 end
local out = {allowed, now}
for i, c in ipairs(checks) do
  if allowed == 1 and c.wait == 0 and c.cost > 0 then
    charge(c, c.cost)
    save(KEYS[i], c)
  elseif c.mended then
    save(KEYS[i], c)
  end
  local n = #out
  out[n + 1] = c.wait
  out[n + 2], out[n + 3], out[n + 4] = report(c)
end
return out

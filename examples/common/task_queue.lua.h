/* task_queue.lua.h - the functions of task_queue.h that run in Redis, in Lua
 *
 * Redis runs each function atomically, and writes all of its changes to the append-only file or
 * none. A call may be repeated with the same arguments if its reply was lost. The first key is the
 * name of the queue, here "tasks"; times are Redis's.
 *
 *   tasks:task:ID    a hash, the task: state (waiting, delayed, ready, done, dead), kind, data, ...
 *   tasks:ready:P    a stream for each priority. A task that a worker has taken is pending in the
 *                    stream's consumer group until the worker reports the outcome
 *   tasks:delayed    tasks by the earliest time at which they may run, in milliseconds
 *   tasks:waiting    tasks that depend on others; tasks:after:ID has those that depend on ID
 *   tasks:dead       the dead letters, by time
 *   tasks:effect:KEY the ID of the task with this key that took effect
 *   tasks:repeated   tasks that were done more than once
 *
 *     waiting -> delayed or ready     the last dependency is done
 *     delayed -> ready                the time has come
 *     ready   -> done                 a run has succeeded
 *     ready   -> delayed              a run has failed; the task waits for its next attempt
 *     ready   -> dead                 the last attempt has failed
 *     dead    -> ready                requeued */
#ifndef TASK_QUEUE_LUA_H
#define TASK_QUEUE_LUA_H

/* clang-format off */
#define TASK_QUEUE__LUA(...) #__VA_ARGS__
static const char task_queue__library[] = "#!lua name=conc_tasks\n" TASK_QUEUE__LUA(
local keep = 3600 /* seconds for which a done task and its key are remembered */
local highest = 2

local function now()
    local time = redis.call("TIME")
    return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function count(q, what, n)
    if n ~= 0 then redis.call("HINCRBY", q .. ":counters", what, n or 1) end
end

/* Queues a task whose dependencies are done. Returns its new state. */
local function place(q, id, priority, at, time)
    if at > time then
        redis.call("ZADD", q .. ":delayed", at, id)
        return "delayed"
    end
    redis.call("XADD", q .. ":ready:" .. priority, "*", "id", id)
    return "ready"
end

local function schedule(q, id, at)
    local task = q .. ":task:" .. id
    local priority = redis.call("HGET", task, "priority")
    redis.call("HSET", task, "state", place(q, id, priority, at, now()))
end

local function ready(q, id) schedule(q, id, 0) end

/* Removes the entry from the stream. Returns false if it was removed before. */
local function remove(q, priority, entry)
    local stream = q .. ":ready:" .. priority
    redis.call("XDEL", stream, entry)
    return redis.call("XACK", stream, "workers", entry) == 1
end

/* Counts a failure. Returns true if that was the last attempt and the task is now a dead letter. */
local function is_dead(q, id, why)
    local task = q .. ":task:" .. id
    local failures = redis.call("HINCRBY", task, "failures", 1)
    redis.call("HSET", task, "error", why)
    if failures < tonumber(redis.call("HGET", task, "attempts")) then return false end
    redis.call("HSET", task, "state", "dead")
    redis.call("ZADD", q .. ":dead", now(), id)
    count(q, "dead")
    return true
end

/* Returns the dependencies that are not done, and their number; or nil and an error. */
local function not_done(q, others)
    local left, n = {}, 0
    for other in string.gmatch(others, "[^,]+") do
        local state = redis.call("HGET", q .. ":task:" .. other, "state")
        if not state then return nil, "NOTASK there is no task " .. other .. " to come after" end
        if state ~= "done" and not left[other] then
            left[other] = true
            n = n + 1
        end
    end
    return left, n
end

local function add_one(q, time, id, kind, data, key, after, priority, attempts, delay, at)
    local task = q .. ":task:" .. id
    if redis.call("EXISTS", task) == 1 then return 0 end
    local left, n = not_done(q, after)
    if not left then return nil, n end
    local state = "waiting"
    at = math.floor(math.max(at * 1000, time + delay * 1000))
    if n == 0 then
        state = place(q, id, priority, at, time)
    else
        redis.call("SADD", q .. ":waiting", id)
    end
    for other in pairs(left) do
        redis.call("SADD", q .. ":after:" .. other, id)
        redis.call("HSET", q .. ":task:" .. other, "followed", 1)
    end
    redis.call("HSET", task, "state", state, "kind", kind, "data", data, "key", key,
               "priority", priority, "attempts", attempts, "at", at, "left", n)
    return 1
end

local function add(keys, args)
    local q, time, sum = keys[1], now(), 0
    for i = 1, #args, 9 do
        local added, error = add_one(q, time, unpack(args, i, i + 8))
        if error then
            count(q, "enqueued", sum)
            return redis.error_reply(error)
        end
        sum = sum + added
    end
    count(q, "enqueued", sum)
    return sum
end

/* Makes due tasks ready. Returns the milliseconds until the next one is due. */
local function make_ready(q, limit)
    for _, id in ipairs(redis.call("ZRANGE", q .. ":delayed", "-inf", now(), "BYSCORE",
                                   "LIMIT", 0, limit)) do
        redis.call("ZREM", q .. ":delayed", id)
        if redis.call("HGET", q .. ":task:" .. id, "state") == "delayed" then ready(q, id) end
    end
    local next = redis.call("ZRANGE", q .. ":delayed", 0, 0, "WITHSCORES")
    return next[2] and math.max(0, next[2] - now()) or 1e9
end

/* Starts a run of the task and adds it to the batch. is_lost: the lease of the last run has
   expired, which counts as a failure. */
local function start(q, priority, e, batch, is_lost)
    local entry, id = e[1], e[2][2]
    local task = q .. ":task:" .. id
    local t = redis.call("HMGET", task, "state", "kind", "data", "failures")
    if is_lost and t[1] == "ready" then count(q, "taken_over") end
    if t[1] ~= "ready" or (is_lost and is_dead(q, id, "its worker was lost")) then
        return remove(q, priority, entry)
    end
    local run = redis.call("HINCRBY", task, "runs", 1)
    local failures = (t[4] or 0) + (is_lost and 1 or 0)
    batch[#batch + 1] = {tostring(priority), entry, id, tostring(run), t[2], t[3], failures}
    batch.waited = batch.waited + batch.now - string.match(entry, "%d+")
end

/* Returns up to `want` tasks: first those whose leases have expired, then new ones; each kind by
   priority. In each quarter of a lease one worker looks for expired leases, and the next one at
   once if there may be more. */
local function take(keys, args)
    local q, worker, want, lease = keys[1], args[1], tonumber(args[2]), tonumber(args[3])
    local pause, batch = make_ready(q, want), {now = now(), waited = 0}
    local looks = redis.call("SET", q .. ":looks", worker, "NX", "PX", math.ceil(lease / 4))
    for priority = highest, 0, -1 do
        local stream = q .. ":ready:" .. priority
        redis.pcall("XGROUP", "CREATE", stream, "workers", 0, "MKSTREAM")
        local lost = looks and #batch < want and redis.call("XAUTOCLAIM", stream, "workers",
            worker, lease, 0, "COUNT", want - #batch)[2]
        for _, e in ipairs(lost or {}) do start(q, priority, e, batch, true) end
    end
    if looks and #batch == want then redis.call("DEL", q .. ":looks") end
    for priority = highest, 0, -1 do
        local found = #batch < want and redis.call("XREADGROUP", "GROUP", "workers", worker,
            "COUNT", want - #batch, "STREAMS", q .. ":ready:" .. priority, ">")
        for _, e in ipairs(found and found[1][2] or {}) do start(q, priority, e, batch) end
    end
    if looks then redis.call("ZREMRANGEBYSCORE", q .. ":seen", 0, batch.now - keep * 1000) end
    count(q, "started", #batch)
    count(q, "waited_ms", batch.waited)
    redis.call("ZADD", q .. ":seen", batch.now, worker)
    return {math.floor(pause), batch}
end

/* Renews the leases of runs, unless a later run of the task has begun. */
local function renew(keys, args)
    local q, worker = keys[1], args[1]
    for i = 2, #args, 4 do
        local priority, entry, id, run = unpack(args, i, i + 3)
        if redis.call("HGET", q .. ":task:" .. id, "runs") == run then
            redis.call("XCLAIM", q .. ":ready:" .. priority, "workers", worker, 0, entry, "JUSTID")
        end
    end
    return 1
end

/* Runs the effect, a Redis command, and marks the key as used. After an error it does neither. */
local function take_effect(q, id, key, effect)
    local mark = q .. ":effect:" .. key
    if effect == "" then return end
    if key ~= "" and redis.call("EXISTS", mark) == 1 then return count(q, "suppressed") end
    local words = {}
    for word in string.gmatch(effect, "%S+") do words[#words + 1] = word end
    local reply = redis.pcall(unpack(words))
    if type(reply) == "table" and reply.err then return reply.err end
    if key ~= "" then redis.call("SET", mark, id, "EX", keep) end
end

local function release_followers(q, id)
    for _, other in ipairs(redis.call("SMEMBERS", q .. ":after:" .. id)) do
        local task = q .. ":task:" .. other
        if redis.call("HINCRBY", task, "left", -1) == 0 then
            redis.call("SREM", q .. ":waiting", other)
            schedule(q, other, tonumber(redis.call("HGET", task, "at")))
        end
    end
    redis.call("DEL", q .. ":after:" .. id)
end

/* Handles a successful run. A task may be done twice, if a worker that was presumed dead was only
   slow. Returns 1 if the task was not done yet, else 0; and the error of the effect, if any. */
local function done(q, time, id, run, effect)
    local task = q .. ":task:" .. id
    local t = redis.call("HMGET", task, "state", "run", "key", "followed", "again:" .. run)
    if not t[1] or t[2] == run or t[5] then return 0 end /* reported before */
    local error = take_effect(q, id, t[3], effect)
    if t[1] == "done" then
        count(q, "repeated")
        redis.call("SADD", q .. ":repeated", id)
        redis.call("HSET", task, "again:" .. run, 1)
        return 0
    end
    if error then return 0, error end
    redis.call("HSET", task, "state", "done", "run", run, "ended", time)
    redis.call("EXPIRE", task, keep)
    if t[1] == "delayed" then redis.call("ZREM", q .. ":delayed", id) end
    if t[1] == "dead" then redis.call("ZREM", q .. ":dead", id) end
    if t[4] then release_followers(q, id) end
    return 1
end

local function failed(q, time, priority, entry, id, run, why, pause)
    local t = redis.call("HMGET", q .. ":task:" .. id, "state", "runs")
    if t[1] ~= "ready" then return remove(q, priority, entry) end
    if t[2] ~= run or not remove(q, priority, entry) then return end
    count(q, "failed")
    if not is_dead(q, id, why) then schedule(q, id, time + pause) end
end

local function count_done(q, worker, time, n)
    local second = q .. ":second:" .. math.floor(time / 1000)
    if n == 0 then return end
    count(q, "done", n)
    redis.call("HINCRBY", q .. ":workers", worker, n)
    redis.call("INCRBY", second, n)
    redis.call("EXPIRE", second, 15)
end

/* Reports the outcomes of runs. Returns how many tasks are newly done. */
local function finish(keys, args)
    local q, worker, time, sum, entries = keys[1], args[1], now(), 0, {}
    for i = 2, #args, 7 do
        local priority, entry, id, run, outcome, text, pause = unpack(args, i, i + 6)
        local new, error = 0, text
        if outcome == "done" then new, error = done(q, time, id, run, text) end
        sum = sum + new
        if error then
            failed(q, time, priority, entry, id, run, error, tonumber(pause) or 1000)
        else
            entries[priority] = entries[priority] or {}
            table.insert(entries[priority], entry)
        end
    end
    for priority, list in pairs(entries) do
        local stream = q .. ":ready:" .. priority
        redis.call("XACK", stream, "workers", unpack(list))
        redis.call("XDEL", stream, unpack(list))
    end
    count_done(q, worker, time, sum)
    return sum
end

local function give_back(q, priority, entry)
    local e = redis.call("XRANGE", q .. ":ready:" .. priority, entry, entry)[1]
    local id = e and e[2][2] or ""
    remove(q, priority, entry)
    if redis.call("HGET", q .. ":task:" .. id, "state") == "ready" then ready(q, id) end
end

/* Ends a worker: makes its tasks ready again, which does not count as a failure. */
local function leave(keys, args)
    local q, worker = keys[1], args[1]
    for priority = highest, 0, -1 do
        local stream = q .. ":ready:" .. priority
        local taken
        repeat
            taken = redis.pcall("XPENDING", stream, "workers", "-", "+", 1000, worker)
            for _, e in ipairs(taken) do give_back(q, priority, e[1]) end
        until #taken == 0
        redis.pcall("XGROUP", "DELCONSUMER", stream, "workers", worker)
    end
    redis.call("ZREM", q .. ":seen", worker)
    return true
end

local function dead(keys)
    local lines = {}
    for _, id in ipairs(redis.call("ZRANGE", keys[1] .. ":dead", 0, -1)) do
        local t = redis.call("HMGET", keys[1] .. ":task:" .. id, "kind", "data", "failures",
                             "error")
        lines[#lines + 1] = string.format("%s: %s %s: failed %s times: %s", id, t[1] or "?",
                                          t[2] or "?", t[3] or "?", t[4] or "?")
    end
    return lines
end

local function requeue(keys, args)
    local q, n, ids = keys[1], 0, {args[1]}
    if args[1] == "all" then ids = redis.call("ZRANGE", q .. ":dead", 0, -1) end
    for _, id in ipairs(ids) do
        if redis.call("ZREM", q .. ":dead", id) == 1 then
            redis.call("HSET", q .. ":task:" .. id, "failures", 0)
            ready(q, id)
            n = n + 1
        end
    end
    return n
end

local function metrics(keys)
    local q, lines, running = keys[1], {}, 0
    local function line(name, value) lines[#lines + 1] = "tasks_" .. name .. " " .. value end
    local function counter(name) return redis.call("HGET", q .. ":counters", name) or 0 end
    for _, name in ipairs({"enqueued", "started", "done", "repeated", "failed", "taken_over",
                           "suppressed", "dead"}) do
        line(name .. "_total", counter(name))
    end
    for priority = highest, 0, -1 do
        local stream = q .. ":ready:" .. priority
        local pending = redis.pcall("XPENDING", stream, "workers")[1] or 0
        line("ready{priority=\"" .. priority .. "\"}", redis.call("XLEN", stream) - pending)
        running = running + pending
    end
    line("running", running)
    line("delayed", redis.call("ZCARD", q .. ":delayed"))
    line("waiting", redis.call("SCARD", q .. ":waiting"))
    line("dead", redis.call("ZCARD", q .. ":dead"))
    local recent, second = 0, redis.call("TIME")[1]
    for i = 1, 10 do recent = recent + (redis.call("GET", q .. ":second:" .. second - i) or 0) end
    line("done_per_second", recent / 10)
    line("waited_seconds_sum", counter("waited_ms") / 1000)
    line("waited_seconds_count", counter("started"))
    for _, worker in ipairs(redis.call("ZRANGE", q .. ":seen", 0, -1)) do
        local label = "{worker=\"" .. worker .. "\"}"
        line("done_by_worker_total" .. label, redis.call("HGET", q .. ":workers", worker) or 0)
        line("worker_seen_seconds_ago" .. label,
             (now() - redis.call("ZSCORE", q .. ":seen", worker)) / 1000)
    end
    line("append_only_file", string.match(redis.call("INFO", "persistence"), "aof_enabled:(%d)"))
    return lines
end

/* Removes the whole queue. */
local function forget(keys)
    local cursor = "0"
    repeat
        local found = redis.call("SCAN", cursor, "MATCH", keys[1] .. ":*", "COUNT", 1000)
        cursor = found[1]
        if #found[2] > 0 then redis.call("UNLINK", unpack(found[2])) end
    until cursor == "0"
    return {}
end

redis.register_function("tasks_add", add)
redis.register_function("tasks_take", take)
redis.register_function("tasks_renew", renew)
redis.register_function("tasks_finish", finish)
redis.register_function("tasks_leave", leave)
redis.register_function("tasks_dead", dead)
redis.register_function("tasks_requeue", requeue)
redis.register_function("tasks_metrics", metrics)
redis.register_function("tasks_forget", forget)
);
/* clang-format on */

#endif

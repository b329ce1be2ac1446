// pool_tbb NAME [COUNT]: of the benchmarks of pool_conc.c those that apply to oneTBB: who waits for a task_group runs
// its tasks itself, so nothing goes to a thread and back.
//   c++ -O2 pool_tbb.cpp -o pool_tbb -ltbb
#include <oneapi/tbb/task_group.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>

static const long warm_up = 10000;

static double seconds()
{
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch())
        .count();
}

static void run_and_wait(long n)
{
    oneapi::tbb::task_group group;
    for (long i = 0; i < n; i++)
        group.run([] {});
    group.wait();
}

static void jobs(long n)
{
    run_and_wait(std::min(n, warm_up));
    double start = seconds();
    run_and_wait(n);
    std::printf("jobs %.4f us\n", (seconds() - start) * 1e6 / static_cast<double>(n));
}

int main(int argc, char **argv)
{
    if (argc < 2)
        std::puts("jobs");
    else if (std::string(argv[1]) == "jobs")
        jobs(argc > 2 ? std::atol(argv[2]) : 1000000);
    else
        return 2;
    return 0;
}

// The scheduler of the emulator: fibers on stacks of their own, run in the order that a test asks for.
//
// forward and reverse run one warp until all its lanes wait for the block or have ended, then the next: the largest lead that a warp can
// have over another. shuffled runs the ready lanes of all warps in an order drawn anew for every pass, and lets a quarter of them wait.
#include "emulator.h"

#include <sys/mman.h>

#include <algorithm>
#include <mutex>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace emu {

Thread* current = nullptr;
dim3 block_dim, grid_dim;
int capability = 90;

namespace {

enum Order { kForward, kReverse, kShuffled };

#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kStack = 512 * 1024;  // frames have red zones
#else
constexpr size_t kStack = 128 * 1024;
#endif
constexpr unsigned kMaxThreads = 1024;

Order order = kForward;
int64_t launches = 0;
std::mutex one_launch;
const std::function<void()>* body = nullptr;
std::string failure;
std::vector<Thread> threads;
std::vector<Warp> warps;
std::vector<unsigned char> shared_memory;
unsigned char* stacks = nullptr;
std::mt19937_64 random_bits(1);

void* stack_of(size_t index) { return stacks + index * kStack; }
void run_thread();

#if defined(__x86_64__)
void* scheduler_stack = nullptr;
// Saves the registers that a call keeps and goes on with those of the other stack.
extern "C" void emc_emulator_switch(void** save, void* load);
asm(R"(
  .text
  .type emc_emulator_switch, @function
emc_emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size emc_emulator_switch, . - emc_emulator_switch
)");
void prepare(Thread& thread, size_t index) {
  auto** top = reinterpret_cast<void**>(static_cast<unsigned char*>(stack_of(index)) + kStack) - 9;
  top[0] = nullptr;  // run_thread does not return; the slot stands for its return address
  *--top = reinterpret_cast<void*>(&run_thread);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  thread.stack_pointer = top;
}
void enter(Thread& thread) { emc_emulator_switch(&scheduler_stack, thread.stack_pointer); }
void leave(Thread& thread) { emc_emulator_switch(&thread.stack_pointer, scheduler_stack); }
#else
ucontext_t scheduler_context;
std::vector<ucontext_t> contexts(kMaxThreads);
void prepare(Thread& thread, size_t index) {
  ucontext_t& context = contexts[index];
  getcontext(&context);
  context.uc_stack.ss_sp = stack_of(index);
  context.uc_stack.ss_size = kStack;
  context.uc_link = nullptr;
  makecontext(&context, run_thread, 0);
  thread.stack_pointer = &context;
}
void enter(Thread& thread) { swapcontext(&scheduler_context, static_cast<ucontext_t*>(thread.stack_pointer)); }
void leave(Thread& thread) { swapcontext(static_cast<ucontext_t*>(thread.stack_pointer), &scheduler_context); }
#endif

void run_thread() {
  (*body)();
  if (!current->copies.empty()) fail("a thread has ended before its copies to shared memory");
  current->state = State::kDone;
  leave(*current);
  __builtin_trap();
}

void step(Thread& thread) {
  current = &thread;
  enter(thread);
  if (!failure.empty()) throw std::runtime_error("CUDA emulator: " + failure);
}

// Lets a warp go on when all its lanes wait in the same operation.
bool release_warp(size_t warp) {
  Thread* lane = &threads[warp * kWarp];
  for (unsigned i = 0; i < kWarp; ++i)
    if (lane[i].state != State::kAtWarp) return false;
  for (unsigned i = 1; i < kWarp; ++i)
    if (lane[i].meeting != lane[0].meeting) throw std::runtime_error("CUDA emulator: lanes of a warp wait in different operations");
  for (unsigned i = 0; i < kWarp; ++i) lane[i].state = State::kReady;
  return true;
}

bool release_block() {
  bool any = false;
  for (const Thread& thread : threads) {
    if (thread.state == State::kDone) continue;
    if (thread.state != State::kAtBlock) return false;
    any = true;
  }
  for (Thread& thread : threads)
    if (thread.state == State::kAtBlock) thread.state = State::kReady;
  return any;
}

bool run_warp(size_t warp) {
  bool ran = false;
  do {
    for (unsigned i = 0; i < kWarp; ++i) {
      Thread& thread = threads[warp * kWarp + (order == kReverse ? kWarp - 1 - i : i)];
      if (thread.state != State::kReady) continue;
      step(thread);
      ran = true;
    }
  } while (release_warp(warp));
  return ran;
}

bool run_shuffled() {
  static std::vector<unsigned> ready;
  ready.clear();
  for (unsigned i = 0; i < threads.size(); ++i)
    if (threads[i].state == State::kReady) ready.push_back(i);
  std::shuffle(ready.begin(), ready.end(), random_bits);
  const size_t wait = ready.size() / 4;
  for (size_t i = wait; i < ready.size(); ++i) step(threads[ready[i]]);
  bool released = false;
  for (size_t warp = 0; warp < warps.size(); ++warp) released = release_warp(warp) || released;
  return released || !ready.empty();
}

void run_block(dim3 index) {
  std::fill(shared_memory.begin(), shared_memory.end(), 0xff);
  for (size_t i = 0; i < threads.size(); ++i) {
    Thread& thread = threads[i];
    thread = Thread();
    const unsigned n = static_cast<unsigned>(i);
    thread.thread_index = dim3(n % block_dim.x, n / block_dim.x % block_dim.y, n / block_dim.x / block_dim.y);
    thread.block_index = index;
    thread.lane = n % kWarp;
    thread.warp = &warps[i / kWarp];
    prepare(thread, i);
  }
  for (;;) {
    bool ran = false;
    if (order == kShuffled) {
      ran = run_shuffled();
    } else {
      for (size_t k = 0; k < warps.size(); ++k) ran = run_warp(order == kReverse ? warps.size() - 1 - k : k) || ran;
    }
    if (release_block()) continue;
    if (ran) continue;
    if (std::all_of(threads.begin(), threads.end(), [](const Thread& t) { return t.state == State::kDone; })) return;
    throw std::runtime_error("CUDA emulator: deadlock: some threads wait at a barrier that the others do not reach");
  }
}

}  // namespace

void meet(Meeting meeting) {
  current->state = State::kAtWarp;
  current->meeting = meeting;
  leave(*current);
}
void sync_threads() {
  current->state = State::kAtBlock;
  leave(*current);
}
void copy_later(void* to, const void* from, unsigned bytes) {
  std::memset(to, 0xff, bytes);
  current->copies.push_back({to, from, bytes, current->groups});
}
void commit_copies() { ++current->groups; }
void wait_copies(unsigned left) {
  std::vector<Copy>& copies = current->copies;
  const auto arrives = [&](const Copy& copy) { return copy.group + left < current->groups; };
  for (const Copy& copy : copies) {
    if (!arrives(copy)) continue;
    if (copy.from == nullptr) {
      std::memset(copy.to, 0, copy.bytes);
    } else {
      std::memcpy(copy.to, copy.from, copy.bytes);
    }
  }
  copies.erase(std::remove_if(copies.begin(), copies.end(), arrives), copies.end());
}
void fail(const char* text) {
  failure = text;
  leave(*current);
  __builtin_trap();
}
void* shared() { return shared_memory.data(); }
bool in_shared(const void* p, size_t bytes) {
  const auto begin = reinterpret_cast<uintptr_t>(shared_memory.data()), at = reinterpret_cast<uintptr_t>(p);
  return at >= begin && at + bytes <= begin + shared_memory.size();
}

void launch(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& thread) {
  const std::lock_guard<std::mutex> lock(one_launch);
  const size_t count = size_t{block.x} * block.y * block.z;
  if (count == 0 || count > kMaxThreads || count % kWarp != 0)
    throw std::runtime_error("CUDA emulator: a block needs 32 to 1024 threads in whole warps");
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535)
    throw std::runtime_error("CUDA emulator: the grid is empty or too large");
  if (shared_bytes > 227 * 1024) throw std::runtime_error("CUDA emulator: more shared memory than a block can have");
  if (stacks == nullptr) {
    void* memory = mmap(nullptr, kMaxThreads * kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::runtime_error("CUDA emulator: no memory for the stacks");
    stacks = static_cast<unsigned char*>(memory);
  }
  ++launches;
  body = &thread;
  failure.clear();
  block_dim = block;
  grid_dim = grid;
  threads.assign(count, Thread());
  warps.assign(count / kWarp, Warp());
  std::vector<unsigned char>(shared_bytes).swap(shared_memory);  // of exactly this size, so that a sanitizer sees what is beyond
  const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
  for (uint64_t i = 0; i < blocks; ++i) {
    const uint64_t n = order == kForward ? i : blocks - 1 - i;
    run_block(
        dim3(static_cast<unsigned>(n % grid.x), static_cast<unsigned>(n / grid.x % grid.y), static_cast<unsigned>(n / grid.x / grid.y)));
  }
}

}  // namespace emu

#define EMC_EXPORT extern "C" __attribute__((visibility("default"), used))

// Each order is that of another device, so that the matrix instructions of all of them are run: Volta's, Turing's and what came after.
EMC_EXPORT void emc_emulator_order(int order) {
  constexpr int capabilities[] = {70, 75, 90};
  emu::order = static_cast<emu::Order>(order);
  emu::capability = capabilities[order];
}
// Another device than the order's, until an order is asked for again.
EMC_EXPORT void emc_emulator_capability(int capability) { emu::capability = capability; }
// Kernels launched so far: tests look whether it was the emulator that served them.
EMC_EXPORT int64_t emc_emulator_launches() { return emu::launches; }

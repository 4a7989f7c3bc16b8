#include "store/start_trace.h"

#include "store/error.h"
#include "store/file.h"
#include "store/text_line.h"

#include <algorithm>
#include <filesystem>
#include <utility>

namespace lamina::store {

namespace {

constexpr const char* kFile = "start trace";
constexpr std::string_view kMagic = "lamina start trace 1";
constexpr std::uint64_t kMaxFileBytes = 8 << 20;
constexpr std::size_t kUnwrittenChunks = 32;

}  // namespace

std::string StartTrace::write() const {
    std::string text = std::string(kMagic) + "\n" + repository + "\n";
    for (const ChunkId& chunk : chunks) text += chunk.digest.text() + "\n";
    return text;
}

StartTrace StartTrace::parse(std::span<const std::byte> file) {
    std::string_view text(reinterpret_cast<const char*>(file.data()), file.size());
    if (take_line(text, kFile) != kMagic) throw Error(Errc::malformed, "start trace: not one, or of another version");
    StartTrace trace{.repository = std::string(take_line(text, kFile)), .chunks = {}};
    while (!text.empty()) {
        if (trace.chunks.size() == kMaxChunks) throw Error(Errc::malformed, "start trace: too many chunks");
        trace.chunks.push_back({Digest::parse(take_line(text, kFile))});
    }
    return trace;
}

bool StartTrace::merge(const std::vector<ChunkId>& run) {
    std::unordered_set<ChunkId> known(chunks.begin(), chunks.end());
    bool has_grown = false;
    for (const ChunkId& chunk : run) {
        if (chunks.size() == kMaxChunks || !known.insert(chunk).second) continue;
        chunks.push_back(chunk);
        has_grown = true;
    }
    return has_grown;
}

void StartTraces::begin(const std::string& mount_id) {
    flush();
    const std::lock_guard lock(mutex_);
    runs_.erase(mount_id);
}

void StartTraces::note(const std::string& mount_id, const Image& image, const std::vector<ChunkId>& chunks,
                       Clock::time_point now) {
    bool is_enough = false;
    {
        const std::lock_guard lock(mutex_);
        Run& run =
            runs_.try_emplace(mount_id, Run{.image = image, .begin = now, .unwritten = {}, .seen = {}}).first->second;
        const bool is_over = now - run.begin > kStart;
        for (const ChunkId& chunk : chunks) {
            if (!is_over && run.seen.insert(chunk).second) run.unwritten.push_back(chunk);
        }
        is_enough = run.unwritten.size() >= kUnwrittenChunks || (is_over && !run.unwritten.empty());
    }
    if (is_enough) flush();
}

void StartTraces::flush() {
    std::vector<std::pair<Image, std::vector<ChunkId>>> taken;
    {
        const std::lock_guard lock(mutex_);
        for (auto& [mount, run] : runs_) {
            if (!run.unwritten.empty()) taken.emplace_back(run.image, std::exchange(run.unwritten, {}));
        }
    }
    for (const auto& [image, chunks] : taken) {
        try {
            add(image, chunks);
        } catch (const Error&) {  // A full disk, most likely: a start is slower then, and nothing else.
        }
    }
}

void StartTraces::add(const Image& image, const std::vector<ChunkId>& chunks) {
    const std::lock_guard writing(writing_);
    StartTrace trace = find(image.config).value_or(StartTrace{.repository = image.repository, .chunks = {}});
    if (trace.merge(chunks)) write(image, trace);
}

void StartTraces::add_run(const Image& image, const std::vector<ChunkId>& chunks) {
    flush();
    const std::lock_guard writing(writing_);
    const StartTrace before = find(image.config).value_or(StartTrace{});
    StartTrace trace{.repository = image.repository, .chunks = {}};
    trace.merge(chunks);
    trace.merge(before.chunks);
    if (trace.chunks != before.chunks) write(image, trace);
}

void StartTraces::write(const Image& image, const StartTrace& trace) const {
    make_folder(folder_);
    write_file_atomically(path(image.config), as_bytes(trace.write()));
    remove_oldest();
}

/// Images go, and versions of them that come later may still begin as they did: so traces stay until there are many.
void StartTraces::remove_oldest() const {
    const std::vector<std::string> names = list_folder(folder_);
    if (names.size() <= kMaxTraces) return;
    const auto written_at = [&](const std::string& name) {
        std::error_code gone;
        return std::filesystem::last_write_time(folder_ + "/" + name, gone);
    };
    remove_file(folder_ + "/" + *std::ranges::min_element(names, {}, written_at));
}

std::optional<StartTrace> StartTraces::find(const BlobDigest& config) const {
    try {
        return StartTrace::parse(read_file(path(config), kMaxFileBytes));
    } catch (const Error&) {  // None, or a damaged one, which is as good as none.
        return std::nullopt;
    }
}

std::vector<StartTrace> StartTraces::of_repository(const std::string& repository) const {
    std::vector<StartTrace> traces;
    if (repository.empty() || !exists(folder_)) return traces;
    for (const std::string& name : list_folder(folder_)) {
        try {
            StartTrace trace = StartTrace::parse(read_file(folder_ + "/" + name, kMaxFileBytes));
            if (trace.repository == repository) traces.push_back(std::move(trace));
        } catch (const Error&) {  // As above.
        }
    }
    return traces;
}

}  // namespace lamina::store

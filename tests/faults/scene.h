#pragma once

#include "store/store.h"
#include "support/temp_dir.h"
#include "support/test_store.h"

#include <algorithm>
#include <functional>
#include <string>
#include <vector>

/// The operations of a store, each with what must hold when it was cut off anywhere: for tests that kill it, or let
/// what it asks of the disk fail, at every call.
namespace lamina::test {

struct Operation {
    std::string name;
    /// What it does; may be done again after it was cut off. Empty: opening the store is all.
    std::function<void(store::Store&)> run;
    /// Empty: the operation's effect is there as a whole. Else what of it is missing or wrong.
    std::function<std::string(store::Store&)> why_not_done;
    /// Empty: nothing of it is there.
    std::function<std::string(store::Store&)> why_not_undone;
    bool starts_empty = false;  ///< There is no store before.
    bool is_save = false;       ///< Writes outside of the store, which it does not change.
};

/// A store that has "old:1" (removed, but for a chunk that others share), "kept:1", "gone:1", a mount, and what a crash
/// left; and sources of "new:1". Everything below one folder, in memory where that can be.
class Scene {
public:
    Scene();
    /// Puts the store back to the beginning; returns its root.
    std::string fresh(const Operation& operation) const;
    std::string work_folder() const { return folder_ / "work"; }  ///< Store and targets of saves lie below it.

    const std::vector<Operation>& operations() const { return operations_; }
    const Operation& operation(const std::string& name) const;

    /// What is wrong with a store that the operation left, finished or not; one line each. Empty: sound, what was there
    /// before is there, the operation's effect is there as a whole or not at all.
    std::string problems(store::Store& store, const Operation& operation) const;
    /// The same for a store that was opened again: it also holds no leftovers.
    std::string problems_at_rest(store::Store& store, const Operation& operation) const;
    /// Does it (again), collects, and tells what is wrong then. In the process in which a removal failed staging may
    /// hold files: they go when the store is opened next.
    enum class Staging { is_empty, may_hold_files };
    std::string problems_of_next_try(store::Store& store, const Operation& operation,
                                     Staging staging = Staging::is_empty) const;

private:
    void make_template();
    void add_imports();
    void add_saves();
    void add_changes();
    std::string import_of(const std::string& target) const;

    TempDir folder_{"/dev/shm"};
    std::vector<store::ImageSummary> base_;
    std::string mount_;
    std::vector<Operation> operations_;
};

/// A call of an operation: the nth of its label, which is the same call in every run, whatever threads do meanwhile.
struct CallPoint {
    std::string label;
    unsigned number = 1;
};
/// Every one of `all`, or `most` of them, evenly spread.
template <class T>
std::vector<T> some_of(const std::vector<T>& all, std::size_t most) {
    std::vector<T> some;
    const std::size_t count = std::min(most, all.size());
    for (std::size_t i = 0; i < count; ++i) some.push_back(all[i * all.size() / count]);
    return some;
}

/// The calls of a run that nothing disturbs; without `every` some of them, each the first of its label.
std::vector<CallPoint> call_points(const Scene& scene, const Operation& operation, bool every);

/// Opens the store, does it, closes the store.
std::string open_and_run(const std::string& root, const Operation& operation);

}  // namespace lamina::test

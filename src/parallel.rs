//! Vocabulary: the items of a list on several threads, and work that only so many threads do at once.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Does `work` for each item, on so many threads, in the order of the list. After a failure no thread takes a further
/// item; the failure of the earliest item is returned.
///
/// The threads are not rayon's: they may wait for each other and for rayon's.
pub fn for_each<T: Sync, E: Send>(
    threads: usize,
    items: &[T],
    work: impl Fn(&T) -> Result<(), E> + Sync,
) -> Result<(), E> {
    for_each_with(threads, items, |take_items| take_items(&()), |item, ()| work(item))
}

/// As [`for_each`]. On each thread `enter` is called with what takes items as long as there are some, which it may call
/// several times, in turns, each time with something for `work` to use.
pub fn for_each_with<T: Sync, C, E: Send>(
    threads: usize,
    items: &[T],
    enter: impl Fn(&dyn Fn(&C)) + Sync,
    work: impl Fn(&T, &C) -> Result<(), E> + Sync,
) -> Result<(), E> {
    let next = AtomicUsize::new(0);
    let failure: Mutex<Option<(usize, E)>> = Mutex::new(None);
    let take_items = |context: &C| {
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(at) else { return };
            if let Err(error) = work(item, context) {
                next.store(items.len(), Ordering::Relaxed);
                let mut failure = failure.lock().unwrap_or_else(PoisonError::into_inner);
                if failure.as_ref().is_none_or(|(earliest, _)| at < *earliest) {
                    *failure = Some((at, error));
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads.min(items.len()) {
            scope.spawn(|| enter(&take_items));
        }
        enter(&take_items);
    });
    match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some((_, error)) => Err(error),
        None => Ok(()),
    }
}

/// Places for work that only so many threads may do at once, as what it takes is bounded.
pub struct Places {
    free: Mutex<usize>,
    is_free: Condvar,
}

/// A place that is taken, until it is dropped.
#[must_use]
pub struct Place<'p>(&'p Places);

impl Places {
    /// So many places, at least one.
    pub fn new(count: usize) -> Self {
        Self { free: Mutex::new(count.max(1)), is_free: Condvar::new() }
    }

    /// Takes a place, as soon as there is one.
    pub fn take(&self) -> Place<'_> {
        let free = self.is_free.wait_while(self.free(), |free| *free == 0);
        *free.unwrap_or_else(PoisonError::into_inner) -= 1;
        Place(self)
    }

    fn free(&self) -> MutexGuard<'_, usize> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        *self.0.free() += 1;
        self.0.is_free.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_is_done_once() {
        for threads in [1, 2, 7] {
            let done: Vec<_> = (0..100).map(|_| AtomicUsize::new(0)).collect();
            let items: Vec<usize> = (0..100).collect();
            for_each(threads, &items, |&at| {
                done[at].fetch_add(1, Ordering::Relaxed);
                Ok::<(), ()>(())
            })
            .unwrap();
            assert!(done.iter().all(|count| count.load(Ordering::Relaxed) == 1));
        }
    }

    #[test]
    fn a_failure_stops_the_rest() {
        let done = AtomicUsize::new(0);
        let items: Vec<usize> = (0..1000).collect();
        let outcome = for_each(3, &items, |&at| {
            done.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(std::time::Duration::from_millis(1));
            if at < 10 { Err(at) } else { Ok(()) }
        });
        assert_eq!(outcome, Err(0));
        assert!(done.load(Ordering::Relaxed) < 20);
    }
    #[test]
    fn no_more_work_at_once_than_there_are_places() {
        let (places, at_work, most) = (Places::new(2), AtomicUsize::new(0), AtomicUsize::new(0));
        for_each(8, &[(); 100], |()| {
            let _place = places.take();
            most.fetch_max(at_work.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            std::thread::sleep(std::time::Duration::from_millis(1));
            at_work.fetch_sub(1, Ordering::SeqCst);
            Ok::<(), ()>(())
        })
        .unwrap();
        assert_eq!(most.load(Ordering::SeqCst), 2);
    }
}

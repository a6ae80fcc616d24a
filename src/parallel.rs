//! Vocabulary: the items of a list on several threads.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

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
}

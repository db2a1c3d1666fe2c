//! tokio, one thread (`current_thread`): epoll, a task and a read buffer for each connection.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::OwnedWriteHalf;
use tokio::net::{TcpListener, TcpStream};
use trunkline_baselines::{Args, Counter, MESSAGES_PER_WRITE, READ_BYTES, Shape};

/// The writing halves of all connections; none where one is gone.
type Everybody = Rc<RefCell<Vec<Option<OwnedWriteHalf>>>>;

fn main() -> io::Result<()> {
    let args = Args::read();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?;
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async move {
        let listener = TcpListener::from_std(args.listen()?)?;
        let everybody = Everybody::default();
        let block: Rc<[u8]> = args.block().into();
        loop {
            let (stream, _) = listener.accept().await?;
            match args.shape {
                Shape::Echo => drop(tokio::task::spawn_local(echo(stream))),
                Shape::Fanout => {
                    let (everybody, block) = (Rc::clone(&everybody), Rc::clone(&block));
                    drop(tokio::task::spawn_local(publish(
                        stream,
                        everybody,
                        block,
                        args.payload,
                    )));
                }
            }
        }
    })
}

/// Ends with the connection.
async fn echo(mut stream: TcpStream) {
    let mut buffer = vec![0; READ_BYTES];
    while let Ok(length @ 1..) = stream.read(&mut buffer).await {
        if stream.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}

async fn publish(stream: TcpStream, everybody: Everybody, block: Rc<[u8]>, payload: usize) {
    let (mut read, write) = stream.into_split();
    let place = {
        let mut all = everybody.borrow_mut();
        all.push(Some(write));
        all.len() - 1
    };
    let mut buffer = vec![0; READ_BYTES];
    let mut counter = Counter::default();
    while let Ok(length @ 1..) = read.read(&mut buffer).await {
        let mut messages = counter.messages(length, payload);
        while messages > 0 {
            let now = messages.min(MESSAGES_PER_WRITE);
            messages -= now;
            let bytes = &block[..now * payload];
            for write in everybody.borrow().iter().flatten() {
                // A short write here would be a slow reader, which this load has not.
                match write.try_write(bytes) {
                    Ok(sent) if sent == bytes.len() => {}
                    other => {
                        eprintln!("a fan-out write of {} bytes: {other:?}", bytes.len());
                        std::process::exit(1);
                    }
                }
            }
        }
    }
    everybody.borrow_mut()[place] = None;
}

# Destroys collections through Debian's Twitter::API: clients.pl [ID TOKEN_SECRET]...
#
# Prints a line a destroy: HTTP status, what became of it (destroyed, or the 1.1 error code), and what the client shows.
# `run` compares the lines with what it expects.
use v5.14;
use warnings;
use JSON::MaybeXS;
use Twitter::API;

while (my ($id, $secret) = splice @ARGV, 0, 2) {
    my $api = Twitter::API->new(
        api_url             => "http://$ENV{REST}",
        consumer_key        => $ENV{CONSUMER_KEY},
        consumer_secret     => $ENV{CONSUMER_SECRET},
        access_token        => $ENV{TOKEN},
        access_token_secret => $secret,
    );
    my ($answer, $context) = eval { $api->post('collections/destroy', { id => $id }) };
    my $error = $@;
    die $error if $error && !ref $error;
    my ($status, $code, $shown)
        = $error
        ? ($error->http_response_code, $error->twitter_error_code, ref($error) . ": $error")
        : ($context->http_response->code, $answer->{destroyed} ? 'destroyed' : '-', encode_json($answer));
    say join "\t", $status, $code, $shown =~ s/\n/\\n/gr;
}
